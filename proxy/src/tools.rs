//! What operators ask with: the same binary as a plugin of kubectl. It asks the cluster through kubectl, which has the
//! kubeconfig's ways of proving who one is, and agents through a port that the API server forwards; or the agent of this
//! node alone, on its socket. Nothing of it runs in an agent.

pub(crate) mod ask;
mod change;
mod cluster;
pub mod complete;
mod kubectl;
mod live;
pub mod recordings;
mod sessions;
mod shell;
mod table;
mod tail;
mod top;
pub mod why;

use std::{
    io::{self, IsTerminal as _, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use self::change::ChangeError;
pub use self::{
    ask::AskError,
    change::{ExtendOptions, RevokeOptions},
    kubectl::KubectlError,
    sessions::SessionsOptions,
    shell::{CompletionOptions, ManOptions},
    tail::TailOptions,
    top::TopOptions,
    why::WhyOptions,
};
use crate::recording::{age::AgeError, cast::VerifyError};

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Tool {
    /// Shows who is on: sessions, as whom they act, until when, and what is open under them.
    Sessions(SessionsOptions),
    /// Says step by step whether a pod is intercepted and may act, and what to do about the first thing that is wrong.
    ///
    /// Exits with 0 if all is well, 3 if the pod isn't intercepted, 4 if it is and can't act, 5 if that can't be told,
    /// and 1 if nothing could be asked.
    Why(WhyOptions),
    /// Shows sessions, their rates and latencies on a screen that renews itself, with their pods and their requests.
    Top(TopOptions),
    /// Shows audit events as they come, until ^C.
    Tail(Box<TailOptions>),
    /// Ends a session now: what is open under it ends within a second.
    Revoke(RevokeOptions),
    /// Has a session end so long from now, and not before.
    Extend(ExtendOptions),
    /// Prints the completions of a shell.
    Completion(CompletionOptions),
    /// Writes the manual pages.
    Man(ManOptions),
}

/// Where the agent of a node answers, unless it was told otherwise.
const SOCKET: &str = "/run/understudy/operator.sock";

/// Whom to ask.
#[derive(Debug, Clone, Args)]
pub struct AskOptions {
    /// Ask the agent of this node alone, on its socket, and no cluster.
    #[arg(long, value_name = "PATH", num_args = 0..=1, require_equals = true, default_missing_value = SOCKET)]
    pub socket: Option<PathBuf>,
    /// Which kubeconfig kubectl is to use.
    #[arg(long, value_name = "PATH")]
    pub kubeconfig: Option<PathBuf>,
    /// Which context of it.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// The agents' namespace.
    #[arg(long, value_name = "NAME", default_value = "understudy-system")]
    pub agents_namespace: String,
    /// The labels of the agents' pods.
    #[arg(
        long,
        value_name = "LABELS",
        default_value = "app.kubernetes.io/name=understudy,app.kubernetes.io/component=agent"
    )]
    pub agents_selector: String,
    /// The port of the agents' --operator-address.
    #[arg(long, value_name = "PORT", default_value = "9903")]
    pub agent_port: u16,
    /// The service account, in the agents' namespace, as which agents are asked: you have to be allowed to make tokens of
    /// it.
    #[arg(long, value_name = "NAME", default_value = "understudy-operator")]
    pub operator_account: String,
}

/// The form of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// A table with all columns.
    Wide,
    /// Names alone, as kubectl takes them.
    Name,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// Why a command came to nothing. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// There is no identity to open recordings with.
    #[error(transparent)]
    Identity(AgeError),
    /// A recording that only some may read.
    #[error("{} is sealed: --identity FILE opens it, with an identity of one of its recipients", .0.display())]
    Sealed(PathBuf),
    /// An agent can't be asked.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The cluster can't be asked.
    #[error(transparent)]
    Cluster(#[from] KubectlError),
    /// A session isn't changed.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// Nobody can be looked on at.
    #[error("{0}")]
    Live(String),
    /// There is no terminal to draw on.
    #[error("this draws on a terminal, and there is none: use {instead}")]
    NoTerminal {
        /// What can do without one.
        instead: &'static str,
    },
    /// The terminal.
    #[error("the terminal can't be drawn on ({0}): see that TERM is right for it")]
    Terminal(io::Error),
    /// What was found can't be written.
    #[error("the output can't be written: {0}")]
    Output(#[from] io::Error),
    /// The manual pages.
    #[error("{directory}: {source}: make the directory, or have it be yours to write to")]
    Manual {
        /// Where they were to go.
        directory: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A recording.
    #[error("{}: {source}", file.display())]
    Recording {
        /// Which.
        file: PathBuf,
        /// What is wrong with it.
        source: VerifyError,
    },
    /// It has no form in YAML, which would be a mistake of ours.
    #[error("the output can't be written as YAML: {0}; use -o json")]
    Yaml(#[from] serde_saphyr::ser::Error),
}

impl ToolError {
    fn recording(file: &Path, source: VerifyError) -> Self {
        Self::Recording {
            file: file.to_owned(),
            source,
        }
    }
}

/// Runs one. What stands in the way is said on standard error, without the agent's log around it.
pub async fn run(tool: Tool) -> ExitCode {
    let outcome = match tool {
        Tool::Sessions(options) => sessions::run(&options).await.map(|()| ExitCode::SUCCESS),
        Tool::Why(options) => why::run(&options).await,
        Tool::Top(options) => top::run(options).await.map(|()| ExitCode::SUCCESS),
        Tool::Tail(options) => tail::run(&options).await.map(|()| ExitCode::SUCCESS),
        Tool::Revoke(options) => change::revoke(&options).await,
        Tool::Extend(options) => change::extend(&options).await,
        Tool::Completion(options) => shell::completion(&options).map(|()| ExitCode::SUCCESS),
        Tool::Man(options) => shell::man(&options).map(|()| ExitCode::SUCCESS),
    };
    exit(outcome)
}

/// What to exit with. What stood in the way is said.
fn exit(outcome: Result<ExitCode, ToolError>) -> ExitCode {
    match outcome {
        // Whoever read has enough: `| head`.
        Err(ToolError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            // Where that can't be written either, the code is all that is left to say.
            let _unsaid = writeln!(anstream::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
        Ok(code) => code,
    }
}

/// Standard output. Colours are left out where it is no terminal, or `NO_COLOR` asks for that.
fn output() -> anstream::AutoStream<io::StdoutLock<'static>> {
    anstream::AutoStream::auto(io::stdout().lock())
}

/// Says what takes its time, where somebody sits before it.
fn progress(line: &str) -> io::Result<()> {
    if io::stderr().is_terminal() {
        writeln!(anstream::stderr(), "{}", table::printable(line))?;
    }
    Ok(())
}

/// Writes a value as JSON or YAML.
fn write_value(out: &mut impl Write, value: &impl Serialize, form: Form) -> Result<(), ToolError> {
    if form == Form::Yaml {
        out.write_all(serde_saphyr::to_string(value)?.as_bytes())?;
    } else {
        serde_json::to_writer_pretty(&mut *out, value).map_err(io::Error::from)?;
        writeln!(out)?;
    }
    Ok(())
}

/// Between two looks of `--watch`.
const WATCH: Duration = Duration::from_secs(2);
