//! Turns arguments into a runtime, and calls [`understudy::app::run`].

#![forbid(unsafe_code)]

use std::{process::ExitCode, time::Duration};

use understudy::{app, cli::Cli, logging, told, tools::complete};

fn main() -> Result<ExitCode, told::Last> {
    if let Some(code) = complete::answer(std::env::args_os()) {
        return Ok(code);
    }
    let cli = Cli::from_command_line(std::env::args_os());
    let levels = logging::start(cli.log_format);
    app::prepare(&cli.command)?;
    let runtime = app::runtime().map_err(anyhow::Error::from)?;
    let outcome = runtime.block_on(app::run(cli.command, levels));
    // A thread that hangs in a write to a dead file system must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(outcome?)
}
