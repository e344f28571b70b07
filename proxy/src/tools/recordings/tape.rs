//! What a recording holds, read only so far as its sums prove it.

use std::{path::Path, time::Duration};

use serde::{Deserialize, de::IgnoredAny};

use crate::recording::{
    about::PORT_FORWARD,
    age::Identity,
    cast::{self, Code, Ending, Line, Verified, VerifyError},
    file,
};

/// No time in a recording is taken for a later one: a year.
const LATEST: Duration = Duration::from_hours(366 * 24);

/// The first line, so far as it is there.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Head {
    pub(super) width: u16,
    pub(super) height: u16,
    /// Seconds since 1970.
    pub(super) timestamp: i64,
    pub(super) title: String,
    pub(super) command: String,
    pub(super) understudy: Ours,
}

/// Whose recording it is, and of what.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Ours {
    #[serde(rename = "auditID")]
    pub(super) audit_id: String,
    pub(super) session: String,
    pub(super) node: String,
    pub(super) pod: String,
    pub(super) user: Option<String>,
    pub(super) impersonated_user: Option<String>,
    pub(super) target: Target,
    pub(super) asked: Asked,
    pub(super) records_stdin: bool,
    sealed: Option<IgnoredAny>,
}

/// Where it was done.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Target {
    pub(super) subresource: String,
    pub(super) namespace: String,
    pub(super) pod: String,
}

/// What was asked for there, so far as it is shown.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    pub(super) container: String,
    pub(super) tty: bool,
}

impl Head {
    /// Whether it is of a port-forward.
    pub(super) fn is_forward(&self) -> bool {
        self.understudy.target.subresource == PORT_FORWARD
    }

    /// Whether it says no more than who may read it.
    pub(super) const fn is_sealed(&self) -> bool {
        self.understudy.sealed.is_some()
    }

    /// The pod in which it was done, `namespace/name`; empty where it is sealed.
    pub(super) fn target(&self) -> String {
        let Target { namespace, pod, .. } = &self.understudy.target;
        if pod.is_empty() {
            return String::new();
        }
        format!("{namespace}/{pod}")
    }

    /// Who did it, and as whom.
    pub(super) fn who(&self) -> String {
        let Ours {
            pod,
            user,
            impersonated_user,
            ..
        } = &self.understudy;
        let who = user.as_deref().unwrap_or(pod);
        match impersonated_user {
            Some(other) if other != who => format!("{who} as {other}"),
            _ => who.to_owned(),
        }
    }
}

/// Something that happened, as far as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    /// Since the beginning; never before the event before it.
    pub(super) at: Duration,
    pub(super) what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// A terminal was told this.
    Output(String),
    /// Its size became columns by rows.
    Size(u16, u16),
    /// In a port-forward, in words.
    Port(String),
}

impl What {
    fn of(code: char, text: &str) -> Option<Self> {
        if code == Code::Output.letter() {
            Some(Self::Output(text.to_owned()))
        } else if code == Code::Resize.letter() {
            let (columns, rows) = text.split_once('x')?;
            Some(Self::Size(columns.parse().ok()?, rows.parse().ok()?))
        } else if code == Code::Port.letter() {
            Some(Self::Port(in_words(text)))
        } else {
            None
        }
    }
}

/// An event of a port-forward, such as `2 80 closed 19 4`.
fn in_words(text: &str) -> String {
    let words: Vec<&str> = text.split(' ').collect();
    match words[..] {
        [connection, port, "opened"] => format!("connection {connection} to port {port}: opened"),
        [connection, port, how @ ("closed" | "open"), up, down] => {
            let how = if how == "open" { "still open at the end" } else { how };
            format!("connection {connection} to port {port}: {how}, {up} bytes to it, {down} bytes from it")
        }
        _ => text.to_owned(),
    }
}

/// How far a recording can be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// To its end, for the reason that it gives.
    Whole(String),
    /// As far as it goes; its end isn't there. So many bytes after that are proven by nothing.
    Cut(u64),
    /// To the line `proven`: another was changed, at `line` or before it.
    Changed {
        /// The first line that can't be right.
        line: u64,
        /// The last that is proven.
        proven: u64,
    },
}

impl State {
    /// In a word.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Whole(_) => "whole",
            Self::Cut(_) => "cut",
            Self::Changed { .. } => "changed",
        }
    }

    /// In a sentence, where it isn't whole.
    pub(super) fn warning(&self) -> Option<String> {
        match self {
            Self::Whole(_) => None,
            Self::Cut(_) => Some(
                "without its end (it is being written, its agent was killed, or it was cut): shown up to its last sum"
                    .to_owned(),
            ),
            Self::Changed { proven: 0, .. } => Some("changed from its beginning on: nothing of it is shown".to_owned()),
            Self::Changed { line, proven } => Some(format!(
                "changed at line {line} or before it: shown up to line {proven}, so far as its sums prove it"
            )),
        }
    }

    /// What `play` and `export` exit with.
    pub(super) const fn exit_code(&self) -> u8 {
        match self {
            Self::Whole(_) => 0,
            Self::Cut(_) => 3,
            Self::Changed { .. } => 4,
        }
    }
}

/// A recording as a whole.
#[derive(Debug, Clone)]
pub(super) struct Summary {
    pub(super) head: Head,
    /// When its last proven event was.
    pub(super) length: Duration,
    pub(super) state: State,
}

/// What of a recording its sums prove.
pub(super) enum Proven<'t> {
    /// Its first line, once.
    Head(&'t Head),
    /// What happened then.
    Event(Event),
}

/// Reads a recording, and hands over what its sums prove.
///
/// # Errors
/// If it can't be read, or isn't a recording.
pub(super) fn read(
    path: &Path,
    identities: &[Identity],
    see: &mut dyn FnMut(Proven<'_>),
) -> Result<Summary, VerifyError> {
    let mut head: Option<Head> = None;
    let mut has_begun = false;
    let mut waiting = Vec::new();
    let (mut last, mut length) = (Duration::ZERO, Duration::ZERO);
    let outcome = cast::read(file::open(path)?, identities, &mut |line| {
        match line {
            Line::Head(text) => head = serde_json::from_slice(text).ok(),
            Line::Event { at, code, text, .. } => {
                let at = Duration::try_from_secs_f64(at).unwrap_or_default();
                last = last.max(at).min(LATEST);
                waiting.extend(What::of(code, text).map(|what| Event { at: last, what }));
            }
            Line::Proven(_) => {
                if let Some(head) = head.as_ref().filter(|_| !has_begun) {
                    see(Proven::Head(head));
                    has_begun = true;
                }
                length = last;
                waiting.drain(..).map(Proven::Event).for_each(&mut *see);
            }
        }
        Ok(())
    });
    let state = match outcome {
        Ok(Verified {
            ending: Ending::Whole(why),
            ..
        }) => State::Whole(why),
        Ok(Verified {
            ending: Ending::Missing { unproven },
            ..
        }) => State::Cut(unproven),
        Err(VerifyError::Changed { line, proven }) => State::Changed { line, proven },
        Err(error) => return Err(error),
    };
    let head = head.ok_or(VerifyError::Foreign)?;
    Ok(Summary { head, length, state })
}
