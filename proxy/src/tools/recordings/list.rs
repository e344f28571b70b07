//! `recordings ls`: which recordings there are, and whether they are to be believed.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, ValueEnum};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::{
    Identities,
    tape::{self, State, Summary},
};
use crate::{
    recording::{age::Identity, cast::VerifyError, file},
    tools::{
        ToolError, output,
        table::{self, NONE},
    },
};

/// The options of `recordings ls`.
#[derive(Debug, Args)]
pub struct ListOptions {
    /// Recordings, and directories of them.
    #[arg(value_name = "DIR|FILE", required = true)]
    pub paths: Vec<PathBuf>,
    /// Only those of this session.
    #[arg(long, value_name = "[NAMESPACE/]NAME")]
    pub session: Option<String>,
    /// Only those that this pod asked for, or that were done in it.
    #[arg(long, value_name = "[NAMESPACE/]NAME")]
    pub pod: Option<String>,
    /// Only those begun since: a time, such as 2026-11-22T14:00:00Z, or so long ago, such as 2h.
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub since: Option<Since>,
    /// The form.
    #[arg(short, long, value_enum)]
    pub output: Option<ListForm>,
    /// Leave the table's headers out.
    #[arg(long)]
    pub no_headers: bool,
    /// What opens those that are sealed: without it only their time, session and node are known.
    #[command(flatten)]
    pub identities: Identities,
}

/// The form of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ListForm {
    /// A table with all columns.
    Wide,
    /// The files alone.
    Name,
    /// JSON.
    Json,
}

/// Since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// A moment.
    At(Timestamp),
    /// So long ago.
    Ago(SignedDuration),
}

fn since(text: &str) -> Result<Since, String> {
    if let Ok(at) = text.parse() {
        return Ok(Since::At(at));
    }
    let ago = text.parse::<SignedDuration>().ok().filter(SignedDuration::is_positive);
    ago.map(Since::Ago)
        .ok_or_else(|| "neither a time as 2026-11-22T14:00:00Z nor a length of time as 2h".to_owned())
}

/// A recording, as it is listed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    file: PathBuf,
    /// `whole`, `cut`, `changed` or `foreign`.
    state: &'static str,
    /// Why it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    ending: Option<String>,
    bytes: u64,
    #[serde(flatten)]
    what: Option<About>,
}

/// What one says of itself. What a changed one says may have been changed as well.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct About {
    session: String,
    pod: String,
    who: String,
    node: String,
    subresource: String,
    target: String,
    container: String,
    command: String,
    #[serde(rename = "auditID")]
    audit_id: String,
    began: Option<Timestamp>,
    seconds: f64,
    tty: bool,
    records_stdin: bool,
    #[serde(skip)]
    length: Duration,
}

impl Item {
    fn read(path: &Path, identities: &[Identity]) -> Result<Self, VerifyError> {
        let bytes = fs::metadata(path)?.len();
        let (state, ending, what) = match tape::read(path, identities, &mut |_| {}) {
            Ok(Summary { head, length, state }) => {
                let name = state.name();
                let ending = match state {
                    State::Whole(why) => Some(why),
                    State::Cut(_) | State::Changed { .. } => None,
                };
                let about = About {
                    who: head.who(),
                    target: head.target(),
                    session: head.understudy.session,
                    pod: head.understudy.pod,
                    node: head.understudy.node,
                    subresource: head.understudy.target.subresource,
                    container: head.understudy.asked.container,
                    command: head.command,
                    audit_id: head.understudy.audit_id,
                    began: Timestamp::from_second(head.timestamp).ok(),
                    seconds: length.as_secs_f64(),
                    tty: head.understudy.asked.tty,
                    records_stdin: head.understudy.records_stdin,
                    length,
                };
                (name, ending, Some(about))
            }
            Err(VerifyError::Foreign) => ("foreign", None, None),
            Err(error) => return Err(error),
        };
        Ok(Self {
            file: path.to_owned(),
            state,
            ending,
            bytes,
            what,
        })
    }

    fn is_wanted(&self, options: &ListOptions, now: Timestamp) -> bool {
        let Some(what) = &self.what else {
            return options.session.is_none() && options.pod.is_none() && options.since.is_none();
        };
        let is = |wanted: &str, found: &str| {
            found == wanted || (!wanted.contains('/') && found.rsplit('/').next() == Some(wanted))
        };
        let since = options.since.map(|since| match since {
            Since::At(at) => at,
            Since::Ago(ago) => now.checked_sub(ago).unwrap_or(Timestamp::MIN),
        });
        options
            .session
            .as_deref()
            .is_none_or(|wanted| is(wanted, &what.session))
            && options
                .pod
                .as_deref()
                .is_none_or(|wanted| is(wanted, &what.pod) || is(wanted, &what.target))
            && since.is_none_or(|since| what.began.is_some_and(|began| began >= since))
    }

    fn row(&self, is_wide: bool, now: Timestamp) -> Vec<String> {
        let of = |text: fn(&About) -> String| self.what.as_ref().map_or_else(|| NONE.to_owned(), text);
        let began = self.what.as_ref().and_then(|what| what.began);
        let mut row = vec![
            of(|what| what.session.clone()),
            of(|what| what.who.clone()),
            of(|what| format!("{} {}", what.subresource, what.target).trim().to_owned()),
            of(|what| what.command.clone()),
            table::ago(began, now),
            of(|what| table::short(what.length)),
            size(self.bytes),
            self.state.to_owned(),
        ];
        if is_wide {
            row.extend([
                began.map_or_else(|| NONE.to_owned(), |began| began.to_string()),
                of(|what| what.node.clone()),
                of(|what| what.container.clone()),
                of(|what| if what.records_stdin { "yes" } else { "no" }.to_owned()),
                of(|what| what.audit_id.clone()),
            ]);
        }
        row.push(self.file.display().to_string());
        row
    }
}

const HEADERS: [&str; 8] = ["SESSION", "WHO", "WHAT", "COMMAND", "AGE", "LENGTH", "SIZE", "STATE"];
const WIDE: [&str; 5] = ["BEGAN", "NODE", "CONTAINER", "STDIN", "AUDIT ID"];

/// Lists them. False: one couldn't be read, which was said.
pub(super) fn run(options: &ListOptions) -> Result<bool, ToolError> {
    list(options, Timestamp::now(), &mut output(), &mut anstream::stderr())
}

fn list(
    options: &ListOptions,
    now: Timestamp,
    out: &mut impl Write,
    complaints: &mut impl Write,
) -> Result<bool, ToolError> {
    let found = file::find(&options.paths).map_err(|(path, source)| ToolError::recording(&path, source.into()))?;
    let identities = options.identities.read()?;
    let mut items = Vec::new();
    let mut all_read = true;
    for path in found {
        match Item::read(&path, &identities) {
            Ok(item) if item.is_wanted(options, now) => items.push(item),
            Ok(_) => {}
            Err(error) => {
                all_read = false;
                writeln!(complaints, "error: {}", ToolError::recording(&path, error))?;
            }
        }
    }
    items.sort_by_key(|item| item.what.as_ref().and_then(|what| what.began));
    match options.output {
        Some(ListForm::Json) => write_json(out, &items)?,
        Some(ListForm::Name) => {
            for item in &items {
                writeln!(out, "{}", item.file.display())?;
            }
        }
        form => {
            let is_wide = form == Some(ListForm::Wide);
            let more: &[&str] = if is_wide { &WIDE } else { &[] };
            let headers = [&HEADERS, more, &["FILE"]].concat();
            let rows: Vec<_> = items.iter().map(|item| item.row(is_wide, now)).collect();
            table::write(out, (!options.no_headers).then_some(&headers), &rows)?;
        }
    }
    Ok(all_read)
}

/// As JSON whose every letter can be shown: what can't is escaped, and reads the same.
fn write_json(out: &mut impl Write, items: &[Item]) -> io::Result<()> {
    let text = serde_json::to_string_pretty(&serde_json::json!({ "items": items }))?;
    for letter in text.chars() {
        if letter == '\n' || table::shown(letter) == letter {
            write!(out, "{letter}")?;
        } else {
            // None of them is beyond the first plane.
            write!(out, "\\u{:04x}", u32::from(letter))?;
        }
    }
    writeln!(out)
}

/// In the unit that leaves a few digits.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut tenths, mut unit) = (bytes.saturating_mul(10) / 1024, 0);
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod tests;
