//! What kubectl completes of the plugin's words. It asks a program of the name `kubectl_complete-understudy` on PATH, with
//! what has been typed so far, and takes an answer as cobra's programs give it: a candidate a line, and a directive.

use std::{
    ffi::OsString,
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use clap::{Arg, Command, CommandFactory as _, ValueHint};

use super::output;
use crate::cli::Cli;

/// The program that kubectl asks.
const PROGRAM: &str = "kubectl_complete-understudy";

/// Cobra's directives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Directive {
    /// The shell may complete the names of files.
    Files = 0,
    /// It may not.
    NoFiles = 4,
}

/// What may stand in place of the last word.
#[derive(Debug, PartialEq, Eq)]
struct Candidates {
    /// Each with what it is, where that is said.
    words: Vec<(String, String)>,
    directive: Directive,
}

/// Answers kubectl, where this was called as the program that it asks.
pub fn answer(words: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let mut words = words.into_iter();
    let program = words.next()?;
    if Path::new(&program).file_stem()? != PROGRAM {
        return None;
    }
    let words: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    let mut command = Cli::command();
    command.build();
    let said = write(&mut output(), &candidates(&command, &words));
    Some(if said.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn write(out: &mut impl Write, candidates: &Candidates) -> io::Result<()> {
    for (word, says) in &candidates.words {
        match says.lines().next() {
            Some(says) => writeln!(out, "{word}\t{says}")?,
            None => writeln!(out, "{word}")?,
        }
    }
    writeln!(out, ":{}", candidates.directive as u8)
}

fn candidates(command: &Command, words: &[String]) -> Candidates {
    let Some((last, before)) = words.split_last() else {
        return of_command(command, 0, "");
    };
    let mut command = command;
    let mut positionals = 0;
    let mut valued = None;
    let mut only_positionals = false;
    for word in before {
        if valued.take().is_some() {
            // The value of the option before it.
        } else if word == "--" {
            only_positionals = true;
        } else if !only_positionals && word.len() > 1 && word.starts_with('-') {
            valued = option(command, word).filter(|option| awaits_value(option) && !word.contains('='));
        } else if let Some(inner) = command.find_subcommand(word).filter(|_| !only_positionals) {
            (command, positionals) = (inner, 0);
        } else {
            positionals += 1;
        }
    }
    if let Some(option) = valued {
        return of_value(option, "", last);
    }
    if only_positionals || !last.starts_with('-') {
        return of_command(command, positionals, last);
    }
    if let Some((name, value)) = last.split_once('=')
        && let Some(option) = option(command, name)
    {
        return of_value(option, &format!("{name}="), value);
    }
    let options = command.get_arguments().filter(|option| !option.is_hide_set());
    let named = options.filter_map(|option| Some((format!("--{}", option.get_long()?), option)));
    Candidates {
        words: named
            .filter(|(name, _)| name.starts_with(last.as_str()))
            .map(|(name, option)| (name, option.get_help().map_or_else(String::new, ToString::to_string)))
            .collect(),
        directive: Directive::NoFiles,
    }
}

/// The option that a word names: a long one, or the last of the short ones.
fn option<'c>(command: &'c Command, word: &str) -> Option<&'c Arg> {
    let word = word.split('=').next()?;
    let is_it = |option: &&Arg| match word.strip_prefix("--") {
        Some(long) => option.get_long() == Some(long),
        None => option.get_short().is_some() && option.get_short() == word.chars().last(),
    };
    command.get_arguments().find(is_it)
}

/// Whether the word after it is its value.
fn awaits_value(option: &Arg) -> bool {
    option.get_action().takes_values() && !option.is_require_equals_set()
}

fn of_command(command: &Command, positionals: usize, begun: &str) -> Candidates {
    let positional = command.get_positionals().nth(positionals).or_else(|| {
        let last = command.get_positionals().last();
        last.filter(|last| last.get_num_args().is_some_and(|count| count.max_values() > 1))
    });
    let mut candidates = match positional {
        Some(positional) => of_value(positional, "", begun),
        None => Candidates {
            words: Vec::new(),
            directive: Directive::NoFiles,
        },
    };
    if positionals == 0 {
        let inner = command.get_subcommands().filter(|inner| !inner.is_hide_set());
        candidates
            .words
            .extend(inner.filter(|inner| inner.get_name().starts_with(begun)).map(|inner| {
                let says = inner.get_about().map_or_else(String::new, ToString::to_string);
                (inner.get_name().to_owned(), says)
            }));
    }
    candidates
}

fn of_value(option: &Arg, prefix: &str, begun: &str) -> Candidates {
    let values = option.get_possible_values();
    let words = values
        .iter()
        .filter(|value| !value.is_hide_set() && value.get_name().starts_with(begun));
    let is_path = matches!(
        option.get_value_hint(),
        ValueHint::AnyPath | ValueHint::FilePath | ValueHint::DirPath | ValueHint::ExecutablePath
    );
    Candidates {
        words: words
            .map(|value| {
                let says = value.get_help().map_or_else(String::new, ToString::to_string);
                (format!("{prefix}{}", value.get_name()), says)
            })
            .collect(),
        directive: if is_path { Directive::Files } else { Directive::NoFiles },
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn completed(words: &[&str]) -> (Vec<String>, Directive) {
        let mut command = Cli::command();
        command.build();
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let Candidates { words, directive } = candidates(&command, &words);
        (words.into_iter().map(|(word, _)| word).collect(), directive)
    }

    #[rstest]
    #[case(&["rec"], &["recordings"], Directive::NoFiles)]
    #[case(&["recordings", ""], &["verify", "decrypt", "ls", "play", "export", "help"], Directive::NoFiles)]
    #[case(&["recordings", "pl"], &["play"], Directive::NoFiles)]
    #[case(&["recordings", "play", ""], &[], Directive::Files)]
    #[case(&["recordings", "play", "-s", "2", ""], &[], Directive::Files)]
    #[case(&["recordings", "ls", "a", "b", "c"], &[], Directive::Files)]
    #[case(&["recordings", "play", "--sp"], &["--speed"], Directive::NoFiles)]
    #[case(&["recordings", "play", "--speed", ""], &[], Directive::NoFiles)]
    #[case(&["recordings", "export", "--to", "h"], &["html"], Directive::NoFiles)]
    #[case(&["recordings", "export", "--to=t"], &["--to=text"], Directive::NoFiles)]
    #[case(&["recordings", "export", "--", "--to"], &[], Directive::Files)]
    #[case(&["sessions", "-o", "j"], &["json"], Directive::NoFiles)]
    #[case(&["sessions", "--socket", "-o", "j"], &["json"], Directive::NoFiles)]
    #[case(&["sessions", "--kubeconfig", ""], &[], Directive::Files)]
    #[case(&["completion", "ba"], &["bash"], Directive::NoFiles)]
    #[case(&["nothing", "x"], &[], Directive::NoFiles)]
    fn words_are_completed(#[case] typed: &[&str], #[case] expected: &[&str], #[case] directive: Directive) {
        let (mut words, told) = completed(typed);
        let mut expected = expected.to_vec();
        words.sort_unstable();
        expected.sort_unstable();
        assert_eq!(
            (words, told),
            (expected.iter().map(|word| (*word).to_owned()).collect(), directive)
        );
    }

    #[test]
    fn all_commands_are_offered_and_said() {
        let mut command = Cli::command();
        command.build();
        let mut out = Vec::new();
        write(&mut out, &candidates(&command, &[String::new()])).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.contains("why\tSays step by step") && text.ends_with("\n:4\n"),
            "{text}"
        );
    }

    #[test]
    fn only_the_program_that_kubectl_asks_answers() {
        for program in ["understudy", "kubectl-understudy"] {
            assert!(answer([program.into(), "rec".into()]).is_none());
        }
    }
}
