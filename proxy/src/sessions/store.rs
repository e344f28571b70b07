//! The one owner of which sessions are in force. Sources send it what they declare; everyone else reads
//! snapshots.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    Declared,
    judge::{Before, Terms, Verdict, judge},
    live::{Credential, End, LiveSession},
    spec::{AuthMethod, SessionSpec, SpecError, TokenSource, VerifiedBy},
    spread::Bucket,
    usage::Usage,
};
use crate::{
    caller::Prover,
    clock::Clock,
    pod::{SessionId, WantedPod},
    status::Refusal,
    upstream::Upstream,
};

/// A deadline is looked at no later than this, so that a jump of the clock ends a session within the second that
/// invariant 5 allows.
const LOOK_AT_LEAST: Duration = Duration::from_millis(500);

/// The sessions as they are at one moment.
#[derive(Default)]
pub struct Snapshot {
    sessions: HashMap<SessionId, Standing>,
    clock: Clock,
}

/// How one session stands.
#[derive(Clone)]
struct Standing {
    state: State,
    /// What it says, where that can be granted.
    terms: Terms,
    incarnation: Option<Arc<str>>,
    /// From when it first came into force.
    usage: Option<Arc<Usage>>,
    /// Why its declaration is refused, where it is.
    refused: Option<Arc<str>>,
}

#[derive(Clone)]
enum State {
    InForce(Arc<LiveSession>),
    /// Over by itself: its time was up, or it went unused.
    Over(End),
    Refused(Refusal),
}

impl Standing {
    fn idle_for(&self, now: Timestamp) -> Duration {
        self.usage.as_ref().map_or(Duration::ZERO, |usage| usage.idle_for(now))
    }

    fn live(&self) -> Option<&Arc<LiveSession>> {
        match &self.state {
            State::InForce(live) => Some(live),
            _ => None,
        }
    }
}

impl Snapshot {
    /// The session to act under, at this very moment.
    ///
    /// # Errors
    /// Why there is none.
    pub fn session(&self, id: &SessionId, now: Timestamp) -> Result<Arc<LiveSession>, Refusal> {
        let standing = self.sessions.get(id).ok_or(Refusal::NoSession)?;
        match &standing.state {
            State::Refused(refusal) => Err(*refusal),
            State::Over(end) => Err(end.refusal()),
            State::InForce(live) if live.ended.is_cancelled() => Err(live.refusal()),
            State::InForce(live) => match standing.terms.over(now, live.usage.idle_for(now)) {
                Some(end) => Err(end.refusal()),
                None => Ok(Arc::clone(live)),
            },
        }
    }

    /// The session in force under a name, whatever the hour.
    #[must_use]
    pub fn in_force(&self, id: &SessionId) -> Option<&Arc<LiveSession>> {
        self.sessions.get(id).and_then(Standing::live)
    }

    /// How each session stands, for those who tell the cluster.
    pub fn reports(&self) -> impl Iterator<Item = Report> + '_ {
        let now = self.clock.now();
        self.sessions.iter().map(move |(id, standing)| {
            let usage = standing.usage.as_ref();
            Report {
                id: id.clone(),
                phase: match &standing.state {
                    State::InForce(_) => Phase::Active,
                    State::Over(End::Idle) => Phase::Idle,
                    State::Over(_) => Phase::Expired,
                    State::Refused(_) => Phase::Refused,
                },
                expires_at: standing.terms.expires_at,
                acts_as: standing.terms.acts_as.as_deref().map(str::to_owned),
                connections: usage.map_or(0, |usage| usage.connections()),
                last_used: usage.map(|usage| usage.last_used(now, standing.terms.idle_timeout)),
                method: standing.terms.method,
                refused: standing.refused.clone(),
                since: usage.map(|usage| usage.since()),
                requests: usage.map_or(0, |usage| usage.requests()),
                failures: usage.map_or(0, |usage| usage.failures()),
                added: usage.map_or_else(Vec::new, |usage| usage.added()),
            }
        })
    }

    /// How many sessions are in force, expired, refused, and idle.
    #[must_use]
    pub fn counts(&self) -> [(&'static str, usize); 4] {
        let mut counts = [("in_force", 0), ("expired", 0), ("refused", 0), ("idle", 0)];
        for standing in self.sessions.values() {
            let index = match standing.state {
                State::InForce(_) => 0,
                State::Over(End::Idle) => 3,
                State::Over(_) => 1,
                State::Refused(_) => 2,
            };
            counts[index].1 += 1;
        }
        counts
    }
}

/// How a session stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Its name.
    pub id: SessionId,
    /// Whether it is in force, and if not, why.
    pub phase: Phase,
    /// When it ends or ended by the clock.
    pub expires_at: Option<Timestamp>,
    /// Whom it impersonates.
    pub acts_as: Option<String>,
    /// Requests and streams open under it on this node.
    pub connections: usize,
    /// When a request last came under it on this node or, before that, when it came into force.
    pub last_used: Option<Timestamp>,
    /// How it authenticates upstream, where that can be said.
    pub method: Option<&'static str>,
    /// Why its declaration is refused, where it is.
    pub refused: Option<Arc<str>>,
    /// Since when this agent has known of it.
    pub since: Option<Timestamp>,
    /// Requests that have come under it on this node since then.
    pub requests: u64,
    /// Those of them that were answered with 400 or above.
    pub failures: u64,
    /// What the agent added to those that it handed on.
    pub added: Vec<Bucket>,
}

/// Whether a session is in force, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// In force.
    Active,
    /// Its time was up.
    Expired,
    /// It went unused for too long.
    Idle,
    /// What it says can't be granted.
    Refused,
}

/// Reads the latest snapshot.
#[derive(Clone)]
pub struct SessionLookup(watch::Receiver<Arc<Snapshot>>);

impl SessionLookup {
    /// Waits for the next snapshot; for ever, once the store is gone.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The sessions of now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.0.borrow())
    }
}

/// Makes what a session in force needs. Apart from the store, so that it can be tested without a network.
pub trait Outfitter: Send + 'static {
    /// The session's way upstream.
    fn upstream(&self, spec: &SessionSpec) -> Upstream;
    /// The agent's own pod token.
    fn own_token(&self) -> Credential;
    /// What has callers prove who they are.
    fn prover(&self, spec: &SessionSpec) -> Arc<Prover>;
    /// A token in a file of the session's.
    fn token_file(&self, path: &std::path::Path) -> impl Future<Output = Credential> + Send;
    /// A token in a Secret of the session's namespace. It needn't be there yet.
    fn secret_token(&self, namespace: &str, name: &str, key: &str) -> Credential;
}

/// Owns the sessions.
pub struct Store<O> {
    outfitter: O,
    clock: Clock,
    sessions: HashMap<SessionId, Standing>,
    publish: watch::Sender<Arc<Snapshot>>,
    pods: watch::Sender<Arc<[WantedPod]>>,
}

impl<O: Outfitter> Store<O> {
    /// An empty store, the way to read its sessions, and the pods that they tag.
    #[must_use]
    pub fn new(outfitter: O, clock: Clock) -> (Self, SessionLookup, watch::Receiver<Arc<[WantedPod]>>) {
        let (publish, snapshot) = watch::channel(Arc::default());
        let (pods, wanted) = watch::channel(Arc::from([]));
        (
            Self {
                outfitter,
                clock,
                sessions: HashMap::new(),
                publish,
                pods,
            },
            SessionLookup(snapshot),
            wanted,
        )
    }

    /// Takes declarations and ends sessions as their time comes, until `stop` is cancelled.
    ///
    /// A source that goes away is no word about its sessions: they stand.
    pub async fn run(mut self, mut declared: mpsc::Receiver<Vec<Declared>>, stop: CancellationToken) {
        let mut source_open = true;
        loop {
            let deadline = self.next_look();
            tokio::select! {
                () = stop.cancelled() => break,
                update = declared.recv(), if source_open => match update {
                    Some(update) => self.apply(update).await,
                    None => source_open = false,
                },
                () = tokio::time::sleep(deadline.unwrap_or_default()), if deadline.is_some() => self.end_what_is_over(),
            }
        }
        for live in self.sessions.values().filter_map(Standing::live) {
            live.end(End::Stopping);
        }
    }

    /// Puts a whole declaration in force. Sessions that act as before go on, with what is open under them.
    pub async fn apply(&mut self, update: Vec<Declared>) {
        let now = self.clock.now();
        let mut before = std::mem::take(&mut self.sessions);
        let mut pods = Vec::new();
        let mut begin = Vec::new();
        // What ends, ends first: what comes into force may take time.
        for mut declared in update {
            pods.append(&mut declared.pods);
            let was = before.remove(&declared.id);
            let (standing, verdict) = stand(&declared, was.as_ref(), now);
            if let (Verdict::Begin(_), Ok(spec)) = (verdict, declared.spec) {
                begin.push((declared.id, spec, standing));
            } else {
                self.sessions.insert(declared.id, standing);
            }
        }
        for live in before.values().filter_map(Standing::live) {
            live.end(End::Removed);
        }
        for (id, spec, standing) in begin {
            let usage = standing.usage.unwrap_or_else(|| Usage::starting(now, None));
            let live = self.bring_into_force(&id, spec, Arc::clone(&usage)).await;
            let standing = Standing {
                state: State::InForce(live),
                usage: Some(usage),
                ..standing
            };
            self.sessions.insert(id, standing);
        }
        self.publish();
        self.pods.send_if_modified(|wanted| {
            let changed = **wanted != *pods;
            if changed {
                *wanted = pods.into();
            }
            changed
        });
    }

    async fn bring_into_force(&self, id: &SessionId, spec: SessionSpec, usage: Arc<Usage>) -> Arc<LiveSession> {
        let credential = match &spec.method {
            AuthMethod::ServiceAccountToken(TokenSource::Inline(token), _) => Credential::Inline(token.clone()),
            AuthMethod::ServiceAccountToken(TokenSource::File(path), _) => self.outfitter.token_file(path).await,
            AuthMethod::ServiceAccountToken(TokenSource::Secret { name, key }, _) => {
                self.outfitter.secret_token(id.namespace(), name, key)
            }
            AuthMethod::GatewayKubernetesAuth(_) | AuthMethod::CallerIdentity(_) => self.outfitter.own_token(),
        };
        let upstream = self.outfitter.upstream(&spec);
        tracing::info!(session = %id, method = spec.method.name(), "a session comes into force");
        if let Some(server) = spec.server()
            && matches!(server.verified_by, VerifiedBy::Nobody(_))
        {
            tracing::warn!(session = %id, server = %server.target, "the session's token goes to a server that nobody verifies");
        }
        let prover = spec.needs_proof().then(|| self.outfitter.prover(&spec));
        LiveSession::new(id.clone(), spec, credential, upstream, usage, prover)
    }

    /// Ends the sessions that are over by themselves.
    fn end_what_is_over(&mut self) {
        let now = self.clock.now();
        let mut changed = false;
        for standing in self.sessions.values_mut() {
            if let State::InForce(live) = &standing.state
                && let Some(end) = standing.terms.over(now, live.usage.idle_for(now))
            {
                live.end(end);
                standing.state = State::Over(end);
                changed = true;
            }
        }
        if changed {
            self.publish();
        }
    }

    /// How long until a session may be due; `None` when none ends by itself.
    fn next_look(&self) -> Option<Duration> {
        let now = self.clock.now();
        self.sessions
            .values()
            .filter(|standing| standing.live().is_some())
            .flat_map(|standing| {
                let expires = standing
                    .terms
                    .expires_at
                    .map(|at| Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO));
                let idle = standing.terms.idle_timeout;
                [
                    expires,
                    idle.map(|timeout| timeout.saturating_sub(standing.idle_for(now))),
                ]
            })
            .flatten()
            .min()
            .map(|until| until.min(LOOK_AT_LEAST))
    }

    fn publish(&self) {
        self.publish.send_replace(Arc::new(Snapshot {
            sessions: self.sessions.clone(),
            clock: self.clock.clone(),
        }));
    }
}

/// How a declared session stands from now on, as far as it can be said without bringing it into force. What was in
/// force under its name goes on or ends here.
fn stand(declared: &Declared, was: Option<&Standing>, now: Timestamp) -> (Standing, Verdict) {
    let same_incarnation = was.is_none_or(|was| {
        was.incarnation.is_none() || declared.incarnation.is_none() || was.incarnation == declared.incarnation
    });
    // What isn't said, as of one that can't be found at the moment, is as it was.
    let known = was.filter(|_| same_incarnation);
    let incarnation = declared
        .incarnation
        .clone()
        .or_else(|| known.and_then(|was| was.incarnation.clone()));
    let usage = match known.and_then(|was| was.usage.clone()) {
        Some(usage) => {
            if let Some(last) = declared.last_used {
                usage.heard(now, last);
            }
            Some(usage)
        }
        None => declared.spec.is_ok().then(|| Usage::starting(now, declared.last_used)),
    };
    let terms = declared.spec.as_ref().map(Terms::from);
    let live = was.and_then(Standing::live);
    let before = live.filter(|live| !live.ended.is_cancelled()).map(|live| Before {
        same_incarnation,
        acts_alike: declared.spec.as_ref().is_ok_and(|spec| live.spec.acts_like(spec)),
    });
    let idle_for = usage.as_ref().map_or(Duration::ZERO, |usage| usage.idle_for(now));
    let verdict = judge(terms.as_ref().map_err(|error| end_by(error)), before, now, idle_for);
    if let (Some(live), Some(why)) = (live, verdict.ends()) {
        live.end(why);
    }
    let state = match (&declared.spec, verdict, live) {
        (Err(error), ..) => State::Refused(refusal_by(error)),
        (Ok(_), Verdict::GoOn, Some(live)) => State::InForce(Arc::clone(live)),
        (Ok(_), Verdict::End(end), _) => State::Over(end),
        // Until it is in force.
        (Ok(_), Verdict::Begin(_) | Verdict::GoOn, _) => State::Refused(Refusal::SessionUnknown),
    };
    let standing = Standing {
        state,
        terms: terms.unwrap_or_default(),
        incarnation,
        usage,
        refused: declared.spec.as_ref().err().map(|error| error.to_string().into()),
    };
    (standing, verdict)
}

/// Why a session ends whose declaration is refused.
fn end_by(error: &SpecError) -> End {
    match error {
        SpecError::NotFound => End::Removed,
        _ => End::Refused,
    }
}

/// What to answer while a declaration is refused.
fn refusal_by(error: &SpecError) -> Refusal {
    match error {
        SpecError::NotFound => Refusal::NoSession,
        SpecError::Unknown => Refusal::SessionUnknown,
        _ => Refusal::SessionInvalid,
    }
}

#[cfg(test)]
mod tests;
