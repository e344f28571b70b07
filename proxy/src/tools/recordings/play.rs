//! `recordings play`: in the terminal, as it looked.
//!
//! `player` knows what is shown at which time and `keys` what keys mean, apart from any terminal; `stage` has the terminal.

mod keys;
mod player;
mod stage;

use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Args;
use crossterm::event;
use tokio::signal::unix::{SignalKind, signal};

use self::{
    player::{Player, Speed},
    stage::Stage,
};
use super::{Identities, open, reading, say, tape::Proven};
use crate::tools::ToolError;

/// The options of `recordings play`.
#[derive(Debug, Args)]
pub struct PlayOptions {
    /// The recording.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// How many times as fast as it was, from 0.1 to 64.
    #[arg(short, long, value_name = "TIMES", default_value = "1")]
    pub speed: Speed,
    /// Pass over pauses that are longer than so many seconds.
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds)]
    pub idle_limit: Option<Duration>,
    /// What opens it, if it is sealed.
    #[command(flatten)]
    pub identities: Identities,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| *seconds > 0.0);
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "not a number of seconds above 0".to_owned())
}

/// The status tells the time to a tenth of a second.
const TICK: Duration = Duration::from_millis(100);
/// No more than so many frames a second are drawn.
const FRAME: Duration = Duration::from_millis(16);

/// Plays it until it is left.
pub(super) async fn run(options: PlayOptions) -> Result<u8, ToolError> {
    if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        return Err(ToolError::NoTerminal {
            instead: "`recordings export FILE --to text`",
        });
    }
    // The terminal is given back before these end the process.
    let ended = Arc::new(AtomicBool::new(false));
    for kind in [SignalKind::terminate(), SignalKind::hangup()] {
        let (mut signal, ended) = (signal(kind).map_err(ToolError::Terminal)?, Arc::clone(&ended));
        tokio::spawn(async move {
            signal.recv().await;
            ended.store(true, Ordering::Relaxed);
        });
    }
    reading(move || play(&options, &ended)).await
}

fn play(options: &PlayOptions, ended: &AtomicBool) -> Result<u8, ToolError> {
    let mut events = Vec::new();
    let mut keep = |proven: Proven<'_>| {
        if let Proven::Event(event) = proven {
            events.push(event);
        }
    };
    let summary = open(&options.file, &options.identities, &mut keep)?;
    let state = summary.state.clone();
    let mut player = Player::new(summary, events, options.idle_limit, options.speed);
    let outcome = Stage::enter().and_then(|stage| watch(&mut player, stage, ended));
    outcome.map_err(ToolError::Terminal)?;
    Ok(say(&options.file, &state))
}

fn watch(player: &mut Player, mut stage: Stage, ended: &AtomicBool) -> io::Result<()> {
    player.go_on(Instant::now());
    loop {
        let now = Instant::now();
        player.tick(now);
        stage.draw(player)?;
        let wait = player.next_in(now).map_or(TICK, |wait| wait.clamp(FRAME, TICK));
        // All keys that are there, then one frame.
        let mut patience = wait;
        while event::poll(patience)? {
            patience = Duration::ZERO;
            match event::read()? {
                event::Event::Key(key) => {
                    if let Some(key) = keys::meant(key)
                        && player.heed(key, Instant::now()).is_break()
                    {
                        return Ok(());
                    }
                }
                event::Event::Resize(..) => stage.resized()?,
                _ => {}
            }
        }
        if ended.load(Ordering::Relaxed) {
            return Ok(());
        }
    }
}
