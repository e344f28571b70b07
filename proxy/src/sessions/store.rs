//! The one owner of which sessions are in force. Sources send it what they declare; everyone else reads
//! snapshots.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    Declared,
    live::{Credential, End, LiveSession},
    spec::{AuthMethod, SessionSpec, TokenSource},
};
use crate::{
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
pub struct Snapshot(HashMap<SessionId, Standing>);

#[derive(Clone)]
enum Standing {
    InForce {
        live: Arc<LiveSession>,
        expires_at: Option<Timestamp>,
    },
    Expired,
    Refused,
}

impl Snapshot {
    /// The session to act under, at this very moment.
    ///
    /// # Errors
    /// Why there is none.
    pub fn session(&self, id: &SessionId, now: Timestamp) -> Result<Arc<LiveSession>, Refusal> {
        match self.0.get(id) {
            None => Err(Refusal::NoSession),
            Some(Standing::Expired) => Err(Refusal::SessionExpired),
            Some(Standing::Refused) => Err(Refusal::SessionInvalid),
            Some(Standing::InForce {
                expires_at: Some(at), ..
            }) if *at <= now => Err(Refusal::SessionExpired),
            Some(Standing::InForce { live, .. }) if live.ended.is_cancelled() => Err(live.refusal()),
            Some(Standing::InForce { live, .. }) => Ok(Arc::clone(live)),
        }
    }

    /// The session in force under a name, whatever the hour.
    #[must_use]
    pub fn in_force(&self, id: &SessionId) -> Option<&Arc<LiveSession>> {
        match self.0.get(id) {
            Some(Standing::InForce { live, .. }) => Some(live),
            _ => None,
        }
    }

    /// How each session stands, for those who tell the cluster.
    pub fn reports(&self) -> impl Iterator<Item = Report> + '_ {
        self.0.iter().map(|(id, standing)| {
            let (phase, expires_at) = match standing {
                Standing::InForce { expires_at, .. } => (Phase::Active, *expires_at),
                Standing::Expired => (Phase::Expired, None),
                Standing::Refused => (Phase::Refused, None),
            };
            Report {
                id: id.clone(),
                phase,
                expires_at,
                acts_as: None,
                connections: 0,
                last_used: None,
            }
        })
    }

    /// How many sessions are in force, expired, and refused.
    #[must_use]
    pub fn counts(&self) -> [(&'static str, usize); 3] {
        let mut counts = [("in_force", 0), ("expired", 0), ("refused", 0)];
        for standing in self.0.values() {
            let index = match standing {
                Standing::InForce { .. } => 0,
                Standing::Expired => 1,
                Standing::Refused => 2,
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
    /// When a request last came under it on this node.
    pub last_used: Option<Timestamp>,
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
                () = tokio::time::sleep(deadline.unwrap_or_default()), if deadline.is_some() => self.expire(),
            }
        }
        for standing in self.sessions.values() {
            if let Standing::InForce { live, .. } = standing {
                live.end(End::Stopping);
            }
        }
    }

    /// Puts a whole declaration in force. Sessions that act as before go on, with what is open under them.
    pub async fn apply(&mut self, update: Vec<Declared>) {
        let now = self.clock.now();
        let mut before = std::mem::take(&mut self.sessions);
        // What ends, ends first: what comes into force may take time.
        let declared: HashMap<_, _> = update.iter().map(|declared| (&declared.id, declared)).collect();
        for (id, standing) in &before {
            if let Standing::InForce { live, .. } = standing
                && let Some(why) = end_of(live, declared.get(id).copied(), now)
            {
                live.end(why);
            }
        }
        let mut pods = Vec::new();
        for declared in update {
            let standing = self.stand(&declared, before.remove(&declared.id), now).await;
            pods.extend(declared.pods);
            self.sessions.insert(declared.id, standing);
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

    async fn stand(&self, declared: &Declared, before: Option<Standing>, now: Timestamp) -> Standing {
        let Ok(spec) = &declared.spec else {
            return Standing::Refused;
        };
        if spec.expires_at.is_some_and(|at| at <= now) {
            return Standing::Expired;
        }
        let live = match before {
            Some(Standing::InForce { live, .. }) if !live.ended.is_cancelled() => live,
            _ => self.bring_into_force(&declared.id, spec).await,
        };
        Standing::InForce {
            live,
            expires_at: spec.expires_at,
        }
    }

    async fn bring_into_force(&self, id: &SessionId, spec: &SessionSpec) -> Arc<LiveSession> {
        let credential = match &spec.method {
            AuthMethod::ServiceAccountToken(TokenSource::Inline(token)) => Credential::Inline(token.clone()),
            AuthMethod::ServiceAccountToken(TokenSource::File(path)) => self.outfitter.token_file(path).await,
            AuthMethod::ServiceAccountToken(TokenSource::Secret { name, key }) => {
                self.outfitter.secret_token(id.namespace(), name, key)
            }
            AuthMethod::GatewayKubernetesAuth(_) => self.outfitter.own_token(),
        };
        let upstream = self.outfitter.upstream(spec);
        tracing::info!(session = %id, method = spec.method.name(), "a session comes into force");
        LiveSession::new(id.clone(), spec.clone(), credential, upstream)
    }

    /// Ends the sessions whose time is up.
    fn expire(&mut self) {
        let now = self.clock.now();
        let mut changed = false;
        for standing in self.sessions.values_mut() {
            if let Standing::InForce {
                live,
                expires_at: Some(at),
            } = standing
                && *at <= now
            {
                live.end(End::Expired);
                *standing = Standing::Expired;
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
            .filter_map(|standing| match standing {
                Standing::InForce {
                    expires_at: Some(at), ..
                } => Some(Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO)),
                _ => None,
            })
            .min()
            .map(|until| until.min(LOOK_AT_LEAST))
    }

    fn publish(&self) {
        self.publish.send_replace(Arc::new(Snapshot(self.sessions.clone())));
    }
}

/// Why a session in force ends by what is declared now; `None` where it goes on.
fn end_of(live: &LiveSession, declared: Option<&Declared>, now: Timestamp) -> Option<End> {
    match declared.map(|declared| &declared.spec) {
        None => Some(End::Removed),
        Some(Err(_)) => Some(End::Refused),
        Some(Ok(spec)) if spec.expires_at.is_some_and(|at| at <= now) => Some(End::Expired),
        Some(Ok(spec)) if !live.spec.acts_like(spec) => Some(End::Changed),
        Some(Ok(_)) => None,
    }
}
