//! `recordings`: lists recordings, plays them in the terminal, makes pages and text of them, and says whether they are what
//! was written. It reads files where they are, and asks no agent.
//!
//! `tape` reads a recording so far as its sums prove it, and `screen` is the terminal that it was shown on.

mod export;
mod list;
mod play;
mod screen;
mod tape;

use std::{
    io::Write as _,
    panic,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use tokio::task;

use self::tape::{Proven, State, Summary};
pub use self::{
    export::{ExportForm, ExportOptions},
    list::{ListForm, ListOptions, Since},
    play::PlayOptions,
};
use super::{ToolError, exit, output};
use crate::{
    cli::RecordingsCommand,
    recording::{age::Identity, report},
};

/// With what to open recordings that are sealed.
#[derive(Debug, Clone, Default, Args)]
pub struct Identities {
    /// A file with identities of age's, to open those that are sealed. May be given several times.
    #[arg(long, value_name = "FILE")]
    pub identity: Vec<PathBuf>,
}

impl Identities {
    fn read(&self) -> Result<Vec<Identity>, ToolError> {
        let mut all = Vec::new();
        for file in &self.identity {
            all.extend(Identity::read(file).map_err(ToolError::Identity)?);
        }
        Ok(all)
    }
}

/// Runs one. What stands in the way is said on standard error.
pub async fn run(command: RecordingsCommand) -> ExitCode {
    let done = match command {
        RecordingsCommand::Verify { paths, identities } => {
            reading(move || {
                Ok(u8::from(!report::verify_all(
                    &paths,
                    &identities.read()?,
                    &mut output(),
                )?))
            })
            .await
        }
        RecordingsCommand::Decrypt { file, identities } => {
            reading(move || {
                let decrypted = report::decrypt(&file, &identities.read()?, &mut output());
                decrypted.map_err(|error| ToolError::recording(&file, error))?;
                Ok(0)
            })
            .await
        }
        RecordingsCommand::Ls(options) => reading(move || Ok(u8::from(!list::run(&options)?))).await,
        RecordingsCommand::Export(options) => reading(move || export::run(&options)).await,
        RecordingsCommand::Play(options) => play::run(options).await,
    };
    exit(done.map(ExitCode::from))
}

/// Reads one that is to be shown.
fn open(path: &Path, identities: &Identities, see: &mut dyn FnMut(Proven<'_>)) -> Result<Summary, ToolError> {
    let read = tape::read(path, &identities.read()?, see);
    let summary = read.map_err(|error| ToolError::recording(path, error))?;
    if summary.head.is_sealed() {
        return Err(ToolError::Sealed(path.to_owned()));
    }
    Ok(summary)
}

/// Off the threads of the runtime: files may be large, or on a file system that hangs.
async fn reading(work: impl FnOnce() -> Result<u8, ToolError> + Send + 'static) -> Result<u8, ToolError> {
    match task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => panic::resume_unwind(error.into_panic()),
    }
}

/// Says what isn't as it should be, and gives the code to exit with.
fn say(path: &Path, state: &State) -> u8 {
    if let Some(warning) = state.warning() {
        // Where that can't be written either, the code is all that is left to say.
        let _unsaid = writeln!(anstream::stderr(), "warning: {}: {warning}", path.display());
    }
    state.exit_code()
}

#[cfg(test)]
mod fixtures;
