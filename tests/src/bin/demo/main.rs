//! The demo: kubectl, unmodified, in three pods of a node in a box, and beside it what the API server saw. It exits
//! with 0 only where everything was as it must be, and cleans up whatever happens.
//!
//! Arguments, signals and the exit code only.

mod act;
mod kubectl_log;
mod page;
mod stage;

use std::{
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use anyhow::{Context as _, Result};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use self::{act::Act, page::Page, stage::Stage};

/// Shows Understudy at work on this machine, in network namespaces and cgroups of its own.
#[derive(Debug, Parser)]
#[command(name = "demo")]
struct Arguments {
    /// Stay in the tagged pod with a shell; leaving it cleans up.
    #[arg(long)]
    shell: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let page = Page::on_standard_output();
    // While a shell has the terminal, Ctrl-C is for what runs in it.
    let shell_is_open = AtomicBool::new(false);
    // Whichever branch ends first, the others are dropped, and with them all that the box has made.
    let outcome = tokio::select! {
        outcome = show(&arguments, &page, &shell_is_open) => outcome.map(Some),
        interrupted = interruption(&shell_is_open) => interrupted.map(|()| None),
    };
    match outcome {
        Ok(Some(true)) => ExitCode::SUCCESS,
        Ok(Some(false)) => ExitCode::FAILURE,
        Ok(None) => {
            Page::line("\ninterrupted; everything is cleaned up");
            ExitCode::from(130)
        }
        Err(error) => {
            page.failure(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Shows all three acts, and says whether everything was as it must be.
async fn show(arguments: &Arguments, page: &Page, shell_is_open: &AtomicBool) -> Result<bool> {
    let start = Instant::now();
    let stage = Stage::set(page).await?;
    let mut right = true;
    for act in Act::ALL {
        right &= act.play(&stage, page).await?;
    }
    page.verdict(right, start.elapsed());
    if arguments.shell {
        Page::shell_banner();
        shell_is_open.store(true, Ordering::Relaxed);
        stage.shell().await?;
    } else {
        Page::what_next();
    }
    Ok(right)
}

/// Returns when a signal asks for the end.
async fn interruption(shell_is_open: &AtomicBool) -> Result<()> {
    let listen = |kind| signal(kind).context("listening for signals");
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hang_up = listen(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = interrupt.recv() => {
                if !shell_is_open.load(Ordering::Relaxed) {
                    return Ok(());
                }
            }
            _ = terminate.recv() => return Ok(()),
            _ = hang_up.recv() => return Ok(()),
        }
    }
}
