//! `recordings export`: a recording as a page that plays in a browser, or as text.

mod html;
mod text;

use std::{
    fs::OpenOptions,
    io::{self, BufWriter, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};

use self::{html::Page, text::Text};
use super::{
    Identities, open, say,
    tape::{Event, Head, Proven, Summary},
};
use crate::tools::{ToolError, output};

/// The options of `recordings export`.
#[derive(Debug, Args)]
pub struct ExportOptions {
    /// The recording.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// What to make of it.
    #[arg(long, value_name = "FORM")]
    pub to: ExportForm,
    /// Where to write it, for its owner's eyes only; standard output, where nothing is named.
    #[arg(long, value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// What opens it, if it is sealed.
    #[command(flatten)]
    pub identities: Identities,
}

/// What a recording is made into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportForm {
    /// A page with a player, in one file that asks the network for nothing.
    Html,
    /// What was shown, without what moved it or coloured it. What was wiped from a line is not in it, nor what a full-screen
    /// program showed.
    Text,
}

/// Makes it. Gives the code to exit with.
pub(super) fn run(options: &ExportOptions) -> Result<u8, ToolError> {
    let out: Box<dyn Write> = match &options.output {
        Some(path) => Box::new(create(path).map_err(|error| ToolError::recording(path, error.into()))?),
        None => Box::new(output()),
    };
    let mut out = BufWriter::new(out);
    let (file, identities) = (&options.file, &options.identities);
    let summary = match options.to {
        ExportForm::Html => export(file, identities, Page::new(&mut out))?,
        ExportForm::Text => export(file, identities, Text::new(&mut out))?,
    };
    out.flush()?;
    Ok(say(&options.file, &summary.state))
}

/// Recordings are for few eyes, and so is what is made of them.
fn create(path: &Path) -> io::Result<impl Write + use<>> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// What a recording is made into, while it is read.
trait Export {
    /// The first line.
    fn begin(&mut self, head: &Head) -> io::Result<()>;
    /// What follows.
    fn event(&mut self, event: &Event) -> io::Result<()>;
    /// All there is. Comes also where nothing came before.
    fn end(self, summary: &Summary) -> io::Result<()>;
}

fn export(file: &Path, identities: &Identities, mut made: impl Export) -> Result<Summary, ToolError> {
    let mut outcome = Ok(());
    let mut write = |proven: Proven<'_>| {
        if outcome.is_ok() {
            outcome = match proven {
                Proven::Head(head) => made.begin(head),
                Proven::Event(event) => made.event(&event),
            };
        }
    };
    let summary = open(file, identities, &mut write)?;
    outcome?;
    made.end(&summary)?;
    Ok(summary)
}

#[cfg(test)]
mod tests;
