//! `tail`: audit events as they come, from one agent or from many.

mod line;

use std::io::Write;

use clap::{Args, ValueEnum};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{
    AskOptions, ToolError,
    live::{HERE, Heard, Live},
    output,
};
use crate::audit::tail::{Codes, Filter};

pub(super) use self::line::{Line, Told};

/// The options of `tail`.
#[derive(Debug, Args)]
pub struct TailOptions {
    /// Whose events to show.
    #[command(flatten)]
    pub filter: FilterOptions,
    /// The form.
    #[arg(short, long, value_enum, default_value_t = TailForm::Text)]
    pub output: TailForm,
    /// Whom to ask.
    #[command(flatten)]
    pub ask: AskOptions,
}

/// Which events. Everything that is said must hold.
#[derive(Debug, Clone, Default, Args)]
pub struct FilterOptions {
    /// The session: its name, or namespace/name.
    #[arg(long, value_name = "NAME")]
    pub session: Option<String>,
    /// The session's namespace; all, where none is named.
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// The pod: its name, or namespace/name.
    #[arg(long, value_name = "NAME")]
    pub pod: Option<String>,
    /// The verb, such as get, watch or create; several apart by commas.
    #[arg(long, value_name = "VERB", value_delimiter = ',')]
    pub verb: Vec<String>,
    /// The code of the answer, or a class of them such as 4xx; several apart by commas.
    #[arg(long, value_name = "CODE", value_delimiter = ',')]
    pub code: Vec<Codes>,
    /// What agents themselves refused, and nothing else.
    #[arg(long)]
    pub refused: bool,
}

/// The form of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TailForm {
    /// A line for each, for people.
    Text,
    /// A line of JSON for each, as the audit log has it, without bodies.
    Json,
}

impl FilterOptions {
    fn filter(&self) -> Filter {
        Filter {
            session: self.session.clone(),
            namespace: self.namespace.clone(),
            pod: self.pod.clone(),
            verbs: self.verb.clone(),
            codes: self.code.clone(),
            refused: self.refused,
        }
    }
}

/// Where events are.
pub(super) fn path(filter: &Filter) -> String {
    match filter.to_query().as_str() {
        "" => "/v1/events".to_owned(),
        query => format!("/v1/events?{query}"),
    }
}

pub(super) async fn run(options: &TailOptions) -> Result<(), ToolError> {
    let filter = options.filter.filter();
    let mut ended = Ended::new()?;
    let mut agents = Live::begin(&options.ask, filter.namespace.as_deref(), path(&filter));
    let is_local = options.ask.socket.is_some();
    let mut said = Said::default();
    loop {
        let heard = tokio::select! {
            heard = agents.next() => heard,
            () = ended.wait() => return Ok(()),
        };
        match heard {
            Heard::Line(node, line) => {
                said.something = true;
                let mut out = output();
                match options.output {
                    TailForm::Json => {
                        out.write_all(&line)?;
                        writeln!(out)?;
                    }
                    TailForm::Text => {
                        let node = (!is_local).then_some(&*node);
                        Line::read(&line, node).write(&mut out)?;
                    }
                }
                out.flush()?;
            }
            // At the first it may be a mistake on the command line; later it is the agent's, which may come back.
            Heard::Lost(_, why) if is_local && !said.something => return Err(ToolError::Live(why)),
            Heard::Blind(why) if !said.something => return Err(ToolError::Live(why)),
            other => said.news(other)?,
        }
    }
}

/// What was said on standard error.
#[derive(Debug, Default)]
struct Said {
    /// Something was heard.
    something: bool,
    omitted: u64,
    too_many: usize,
}

impl Said {
    fn news(&mut self, heard: Heard) -> Result<(), ToolError> {
        let named = |node: &str| {
            if node == HERE {
                String::new()
            } else {
                format!("{node}: ")
            }
        };
        let news = match heard {
            Heard::Up(_) => {
                self.something = true;
                return Ok(());
            }
            Heard::Lost(node, why) => format!("{}{why}; what comes until it goes on is in the log alone", named(&node)),
            Heard::Notice(node, notice) if notice.omitted > self.omitted => {
                self.omitted = notice.omitted;
                let omitted = notice.omitted;
                format!("{}the audit policy leaves requests out: {omitted} so far", named(&node))
            }
            Heard::Blind(why) => format!("{why}; nodes that come aren't seen"),
            Heard::TooMany(nodes) if nodes != self.too_many => {
                self.too_many = nodes;
                format!("sessions are on {nodes} nodes, and not all are looked on at: name a namespace")
            }
            Heard::Notice(..) | Heard::TooMany(_) | Heard::Gone(_) | Heard::Line(..) => return Ok(()),
        };
        Ok(writeln!(anstream::stderr(), "{news}")?)
    }
}

/// That it is to end. What it started ends with it, where a signal alone would leave it.
#[derive(Debug)]
pub(super) struct Ended {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Ended {
    pub(super) fn new() -> Result<Self, ToolError> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    pub(super) async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
