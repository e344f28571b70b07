//! Completions and manual pages, made of the definition of the command line.

use std::{io, path::PathBuf};

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{ToolError, output};
use crate::cli::Cli;

/// The options of `completion`.
#[derive(Debug, Args)]
pub struct CompletionOptions {
    /// The shell.
    #[arg(value_enum)]
    pub shell: Shell,
}

/// The options of `man`.
#[derive(Debug, Args)]
pub struct ManOptions {
    /// An existing directory to write them to, such as /usr/local/share/man/man1.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

pub(super) fn completion(options: &CompletionOptions) -> Result<(), ToolError> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut Cli::command(), "understudy", &mut script);
    Ok(io::Write::write_all(&mut output(), &script)?)
}

pub(super) fn man(options: &ManOptions) -> Result<(), ToolError> {
    clap_mangen::generate_to(Cli::command(), &options.directory).map_err(|source| ToolError::Manual {
        directory: options.directory.clone(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let directory = tempfile::tempdir().unwrap();
        let options = ManOptions {
            directory: directory.path().to_owned(),
        };
        man(&options).unwrap();
        for page in [
            "understudy.1",
            "understudy-why.1",
            "understudy-sessions.1",
            "understudy-agent.1",
        ] {
            let text = std::fs::read_to_string(directory.path().join(page)).unwrap();
            assert!(text.contains(".SH SYNOPSIS"), "{page}: {text}");
        }
        let gone = ManOptions {
            directory: directory.path().join("none"),
        };
        let error = man(&gone).unwrap_err().to_string();
        assert!(
            error.contains("none") && error.contains("make the directory"),
            "{error}"
        );
    }
}
