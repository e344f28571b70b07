//! `top`: sessions on a screen that renews itself. [`model`] is what is known, [`state`] what is being looked at, and both
//! change by plain functions; [`screen`] draws them. Here is what waits: agents, keys and the clock.

mod column;
mod model;
mod screen;
mod state;

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use clap::Args;
use crossterm::event::{Event, EventStream, KeyEventKind};
use futures_util::StreamExt as _;
use jiff::Timestamp;
use ratatui::DefaultTerminal;
use tokio::time::{self, Instant, MissedTickBehavior};

use self::state::{Action, State};
use super::{
    AskOptions, ToolError,
    live::{Heard, Live},
    tail::{self, Ended, Line},
};
use crate::audit::tail::Filter;

/// The options of `top`.
#[derive(Debug, Args)]
pub struct TopOptions {
    /// The sessions' namespace; all, where none is named.
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// How often to look, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = clap::value_parser!(u64).range(1..=60))]
    pub every: u64,
    /// Whom to ask.
    #[command(flatten)]
    pub ask: AskOptions,
}

/// Times go on though nothing is heard.
const REDRAW: Duration = Duration::from_secs(1);
/// A busy session's events come faster than anybody reads: so often, at most, the screen is drawn for them.
const FRAME: Duration = Duration::from_millis(100);

pub(super) async fn run(options: TopOptions) -> Result<(), ToolError> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(ToolError::NoTerminal {
            instead: "`sessions --watch` or `tail`",
        });
    }
    let ended = Ended::new()?;
    let screen = Screen::take()?;
    // Boxed: it is in nobody's way while an agent runs.
    Box::pin(show(&options, screen, ended)).await
}

/// The terminal, as the shell had it again when this is dropped; a panic gives it back as well.
struct Screen(DefaultTerminal);

impl Screen {
    fn take() -> Result<Self, ToolError> {
        Ok(Self(ratatui::try_init().map_err(ToolError::Terminal)?))
    }

    fn draw(&mut self, state: &mut State) -> Result<(), ToolError> {
        let drawn = self.0.draw(|frame| screen::draw(frame, state, Timestamp::now()));
        drawn.map(drop).map_err(ToolError::Terminal)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

async fn show(options: &TopOptions, mut screen: Screen, mut ended: Ended) -> Result<(), ToolError> {
    let namespace = options.namespace.as_deref();
    let mut live = Live::begin(&options.ask, namespace, format!("/v1/sessions?every={}", options.every));
    let mut events: Option<Live> = None;
    let mut keys = EventStream::new();
    let mut state = State::new(options.namespace.clone());
    let mut redraw = time::interval(REDRAW);
    redraw.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut drawn = Instant::now();
    screen.draw(&mut state)?;
    loop {
        let is_due = tokio::select! {
            heard = live.next() => {
                state.model.heard(heard, Instant::now());
                true
            }
            heard = next_of(&mut events) => {
                tell(&mut state, heard, options.ask.socket.is_none());
                drawn.elapsed() >= FRAME
            }
            key = keys.next() => {
                match key {
                    Some(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => match state.key(key) {
                        Action::Quit => return Ok(()),
                        Action::Follow(session) => {
                            let filter = Filter {
                                session: Some(format!("{}/{}", session.namespace, session.name)),
                                ..Filter::default()
                            };
                            events = Some(Live::begin(&options.ask, Some(&session.namespace), tail::path(&filter)));
                        }
                        Action::Leave => events = None,
                        Action::Nothing => {}
                    },
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(ToolError::Terminal(error)),
                    // The terminal has gone.
                    None => return Ok(()),
                }
                true
            }
            _ = redraw.tick() => true,
            () = ended.wait() => return Ok(()),
        };
        if is_due {
            screen.draw(&mut state)?;
            drawn = Instant::now();
        }
    }
}

async fn next_of(live: &mut Option<Live>) -> Heard {
    match live {
        Some(live) => live.next().await,
        None => std::future::pending().await,
    }
}

/// What is heard of a session's events.
fn tell(state: &mut State, heard: Heard, is_cluster: bool) {
    match heard {
        Heard::Line(node, line) => state.event(Line::read(&line, is_cluster.then_some(&*node))),
        Heard::Up(_) => state.news(None),
        Heard::Lost(node, why) => state.news(Some(format!("{node}: {why}"))),
        Heard::Blind(why) => state.news(Some(why)),
        Heard::Notice(_, notice) if notice.omitted > 0 => state.news(Some(format!(
            "the audit policy leaves requests out: {} so far",
            notice.omitted
        ))),
        Heard::Notice(..) | Heard::Gone(_) | Heard::TooMany(_) => {}
    }
}
