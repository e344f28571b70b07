//! Builds the agent, starts it, and takes it down, top-down: [`run`], [`agent`].

mod agent;
mod audit;
mod certificate;
pub mod confine;
mod intercept;
mod operate;
mod outfit;
mod report;
mod source;
mod upload;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use tokio::{
    runtime::{self, Runtime},
    signal::unix::{Signal, SignalKind, signal},
};

use self::agent::Agent;
use crate::{
    check,
    cli::{AgentOptions, CheckOptions, Command, Output},
    clock, gate, handover, kernel,
    logging::{Levels, LevelsError},
    operator, sessions, tools,
};

/// What has to be done before any thread is made: the agent gives up what it won't need.
///
/// # Errors
/// What can't be given up.
pub fn prepare(command: &Command) -> anyhow::Result<()> {
    if let Command::Agent(options) = command {
        confine::confine(options)?;
    }
    Ok(())
}

/// The runtime that everything runs in.
///
/// # Errors
/// If the system has no room for its threads or its poll.
pub fn runtime() -> io::Result<Runtime> {
    clock::slots_begin();
    runtime::Builder::new_multi_thread().enable_all().build()
}

/// Runs a command to its end. An agent changes the log's levels where it is told to.
///
/// # Errors
/// What stands in the way, with what to do about it.
pub async fn run(command: Command, levels: Levels) -> anyhow::Result<ExitCode> {
    match command {
        Command::Agent(options) => Box::pin(run_agent(*options, levels)).await.map(|()| ExitCode::SUCCESS),
        Command::Check(options) => run_check(&options).await,
        Command::Tool(tool) => Ok(tools::run(tool).await),
        Command::Crd => {
            io::stdout().write_all(sessions::resource::definition()?.as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Uninstall { pin_dir, run_dir, stay } => {
            let signals = Signals::new()?;
            kernel::uninstall(&pin_dir)?;
            operator::remove(&run_dir)?;
            handover::remove(&run_dir)?;
            if stay {
                tracing::info!("nothing of Understudy's is left in this node's kernel; staying until SIGTERM");
                signals.ended().await;
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Recordings { command } => Ok(tools::recordings::run(command).await),
        Command::Gate { timeout } => {
            gate::wait(|variable| std::env::var(variable).ok(), timeout).await?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn run_check(options: &CheckOptions) -> anyhow::Result<ExitCode> {
    let report = check::run(options, |variable| std::env::var(variable).ok()).await;
    report.write(&mut io::stdout(), options.output == Output::Json)?;
    Ok(ExitCode::from(u8::from(!report.passed())))
}

async fn run_agent(options: AgentOptions, levels: Levels) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    tokio::spawn(heed_levels(LevelSignals::new()?, levels.clone()));
    if let Some(file) = options.log_level_file.clone() {
        tokio::spawn(levels.follow(file));
    }
    let deadline = options.drain_deadline;
    // A start may have to wait for the cluster, and gives up where it is. The kernel side is put in force in one step.
    let agent = tokio::select! {
        agent = Agent::start(options) => agent?,
        _ = signals.terminate.recv() => return Ok(()),
        _ = signals.interrupt.recv() => return Ok(()),
    };
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => break,
            _ = signals.interrupt.recv() => break,
            _ = signals.hangup.recv() => agent.reopen_audit_log(),
        }
    }
    tracing::info!(?deadline, "draining: no new connections, open streams may end");
    tokio::select! {
        () = agent.drain(deadline) => {}
        _ = signals.interrupt.recv() => tracing::warn!("interrupted: open streams are cut"),
    }
    Ok(())
}

/// Changes the log's levels as signals say.
async fn heed_levels(mut signals: LevelSignals, levels: Levels) {
    loop {
        let changed: Result<(), LevelsError> = tokio::select! {
            Some(()) = signals.raise.recv() => levels.raise(),
            Some(()) = signals.reset.recv() => levels.set(""),
            else => return,
        };
        if let Err(error) = changed {
            tracing::error!(%error, "the log's levels stay as they were");
        }
    }
}

struct LevelSignals {
    raise: Signal,
    reset: Signal,
}

impl LevelSignals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            raise: signal(SignalKind::user_defined1())?,
            reset: signal(SignalKind::user_defined2())?,
        })
    }
}

/// Signals are caught from the start, so that one that comes while the agent starts isn't lost.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Waits for SIGTERM or SIGINT.
    async fn ended(mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}
