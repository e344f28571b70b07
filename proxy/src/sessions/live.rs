//! A session in force.

use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{spec::SessionSpec, usage::Usage};
use crate::{
    audit::User,
    caller::Prover,
    credentials::{BearerToken, CredentialError, TokenFile},
    pod::SessionId,
    status::Refusal,
    upstream::Upstream,
};

/// A session in force: what every request under it needs. It lives until it ends or acts otherwise; a longer or
/// shorter term alone leaves it standing, and what is open under it.
pub struct LiveSession {
    /// Its name.
    pub id: SessionId,
    /// Its terms when it came into force.
    pub spec: SessionSpec,
    /// Its way upstream, shared with no other session.
    pub upstream: Upstream,
    /// When it was last used, and what is open under it.
    pub usage: Arc<Usage>,
    /// Has callers prove who they are, where they have to.
    pub prover: Option<Arc<Prover>>,
    /// Cancelled when it ends.
    pub ended: CancellationToken,
    credential: Credential,
    acting: Option<Arc<User>>,
    end: OnceLock<End>,
}

/// The credential that acts.
#[derive(Debug, Clone)]
pub enum Credential {
    /// As it stands in the session.
    Inline(BearerToken),
    /// Read from a file: the session's, or the agent's own pod token.
    File(TokenFile),
    /// Watched elsewhere: what was found last, or why there is nothing.
    Watched(watch::Receiver<Result<BearerToken, CredentialError>>),
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Its time was up.
    Expired,
    /// It went unused for too long.
    Idle,
    /// Its declaration was taken away.
    Removed,
    /// Its declaration is refused now.
    Refused,
    /// It acts otherwise now: another identity, credential or server.
    Changed,
    /// The agent stops.
    Stopping,
}

impl LiveSession {
    /// A session that comes into force.
    #[must_use]
    pub fn new(
        id: SessionId,
        spec: SessionSpec,
        credential: Credential,
        upstream: Upstream,
        usage: Arc<Usage>,
        prover: Option<Arc<Prover>>,
    ) -> Arc<Self> {
        let told = spec.tell_session.then_some(&id);
        let acting = spec
            .method
            .acts_as()
            .map(|acts_as| Arc::new(User::impersonated(acts_as, told)));
        Arc::new(Self {
            acting,
            id,
            spec,
            upstream,
            usage,
            prover,
            ended: CancellationToken::new(),
            credential,
            end: OnceLock::new(),
        })
    }

    /// The token to send at this moment.
    ///
    /// # Errors
    /// If there is none: unreadable, or expired.
    pub fn token(&self, now: Timestamp) -> Result<BearerToken, CredentialError> {
        let token = match &self.credential {
            // It judges the time itself.
            Credential::File(file) => return file.current(),
            Credential::Inline(token) => token.clone(),
            Credential::Watched(found) => found.borrow().clone()?,
        };
        match token.expiry() {
            Some(expiry) if expiry <= now => Err(CredentialError::Outlived {
                session: self.id.to_string(),
                expiry,
            }),
            _ => Ok(token),
        }
    }

    /// Ends it, and all that is open under it. Only the first reason counts.
    pub fn end(&self, why: End) {
        if self.end.set(why).is_ok() {
            tracing::info!(session = %self.id, ?why, "a session ends");
        }
        self.ended.cancel();
    }

    /// What to answer a request that met the end.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        self.end.get().map_or(Refusal::SessionRevoked, |why| why.refusal())
    }

    /// As whom it acts, for the audit log, where that is impersonated and the same for all.
    #[must_use]
    pub fn acting(&self) -> Option<&Arc<User>> {
        self.acting.as_ref()
    }

    /// The session to name to the API server, if it is to be told.
    #[must_use]
    pub fn told(&self) -> Option<&SessionId> {
        self.spec.tell_session.then_some(&self.id)
    }
}

impl End {
    /// What to answer a request that meets it.
    #[must_use]
    pub fn refusal(self) -> Refusal {
        match self {
            Self::Expired => Refusal::SessionExpired,
            Self::Idle => Refusal::SessionIdle,
            Self::Removed | Self::Changed => Refusal::SessionRevoked,
            Self::Refused => Refusal::SessionInvalid,
            Self::Stopping => Refusal::Draining,
        }
    }
}

impl Drop for LiveSession {
    /// The store is gone, or forgot it: nothing may stay open under it.
    fn drop(&mut self) {
        self.ended.cancel();
    }
}
