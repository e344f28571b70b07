//! `recordings`: lists recordings, plays them in the terminal, makes pages and text of them, and says whether they are what
//! was written. It reads files where they are, and asks no agent.
//!
//! `tape` reads a recording so far as its sums prove it, and `screen` is the terminal that it was shown on.

mod export;
mod list;
mod play;
mod screen;
mod tape;

use std::{io::Write as _, panic, path::Path, process::ExitCode};

use tokio::task;

use self::tape::State;
pub use self::{
    export::{ExportForm, ExportOptions},
    list::{ListForm, ListOptions, Since},
    play::PlayOptions,
};
use super::{ToolError, exit, output};
use crate::{cli::RecordingsCommand, recording::report};

/// Runs one. What stands in the way is said on standard error.
pub async fn run(command: RecordingsCommand) -> ExitCode {
    let done = match command {
        RecordingsCommand::Verify { files } => {
            reading(move || Ok(u8::from(!report::verify_all(&files, &mut output())?))).await
        }
        RecordingsCommand::Ls(options) => reading(move || Ok(u8::from(!list::run(&options)?))).await,
        RecordingsCommand::Export(options) => reading(move || export::run(&options)).await,
        RecordingsCommand::Play(options) => play::run(options).await,
    };
    exit(done.map(ExitCode::from))
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
