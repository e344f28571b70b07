//! `caller-identity`: whoever calls proves who that is, and is carried upstream exactly, or refused.
//!
//! As in kube-apiserver a client certificate counts first, then a bearer token, and one that is good makes up for
//! one that isn't; with neither, the caller is whatever the API server takes such a one for. [`x509`] judges
//! certificates by the [`authorities`] in force now, [`token`] reads what a request shows, [`review`] has the API server
//! judge it, and [`nested`] is a caller who asks to be somebody else. Nothing here is forwarded: a [`Caller`] is for
//! [`crate::identity`] to carry.

pub mod authorities;
pub mod granted;
pub mod nested;
pub mod review;
pub mod token;
pub mod x509;

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use http::HeaderMap;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::UserInfo;
use secrecy::SecretString;

use self::{
    authorities::Authorities,
    nested::Requested,
    review::Reviewer,
    x509::{Certificate, CertificateError},
};
use crate::{
    identity::{ActsAs, ActsAsError},
    metrics::{Metrics, ProofOf, ProofOutcome},
    status::Refusal,
};

/// How long the API server may take to judge a token, or whether a caller may impersonate.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where a token says which pod it was made for (`k8s.io/apiserver/pkg/authentication/serviceaccount`, `PodUIDKey`).
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// What a request shows of its caller.
#[derive(Debug)]
pub struct Shown {
    token: Option<SecretString>,
    requested: Option<Requested>,
}

impl Shown {
    /// Reads it off a request's head, before that is stripped. Only a WebSocket handshake may show a token as one.
    ///
    /// # Errors
    /// If it can be read in more than one way.
    pub fn read(headers: &HeaderMap, is_websocket: bool) -> Result<Self, Refusal> {
        Ok(Self {
            token: token::shown(headers, is_websocket)?,
            requested: Requested::read(headers)?,
        })
    }
}

/// Whom a caller proved to be.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The user, as the API server knows it; `None` where nothing was shown.
    pub user: Option<Arc<UserInfo>>,
    /// By what.
    pub proof: ProofOf,
}

impl Caller {
    /// The user's name, for the audit log.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.user.as_ref().and_then(|user| user.username.as_deref())
    }
}

/// Why a caller isn't taken for who it says it is.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Unproven {
    /// What was shown isn't good.
    #[error("what was shown is not accepted")]
    Invalid,
    /// Whether it is can't be known at the moment.
    #[error("it can't be judged now: {0}")]
    Unknown(Arc<str>),
    /// The caller is somebody who can't be carried.
    #[error("{0}")]
    Uncarriable(Arc<str>),
}

impl Unproven {
    fn outcome(&self) -> ProofOutcome {
        match self {
            Self::Invalid => ProofOutcome::Invalid,
            Self::Unknown(_) => ProofOutcome::Unknown,
            Self::Uncarriable(_) => ProofOutcome::Uncarriable,
        }
    }

    fn refusal(&self) -> Refusal {
        match self {
            Self::Invalid => Refusal::Unproven,
            Self::Unknown(_) => Refusal::ProofUnavailable,
            Self::Uncarriable(_) => Refusal::Uncarriable,
        }
    }
}

/// Has callers of one session prove who they are. Each session has its own, so that none can crowd out another's.
#[derive(Debug)]
pub struct Prover {
    authorities: Authorities,
    reviewer: Arc<Reviewer>,
    metrics: Metrics,
}

impl Prover {
    /// One that takes certificates under `authorities`, and tokens as `reviewer` finds them.
    #[must_use]
    pub fn new(authorities: Authorities, reviewer: Reviewer, metrics: Metrics) -> Self {
        Self {
            authorities,
            reviewer: Arc::new(reviewer),
            metrics,
        }
    }

    /// Who the caller is, by what the connection and the request show, judged at this moment.
    ///
    /// # Errors
    /// 401 for what isn't good, 503 where that can't be known, 422 for somebody who can't be carried.
    pub async fn prove(
        &self,
        certificate: Option<&Certificate>,
        shown: &Shown,
        now: Timestamp,
    ) -> Result<Caller, Refusal> {
        let by_certificate = match certificate {
            None => Ok(None),
            Some(certificate) => self.by_certificate(certificate, now),
        };
        // As kube-apiserver has it, a token makes up for a certificate that isn't good; not for one that can't be judged.
        let failed = match by_certificate {
            Ok(Some(user)) => return Ok(self.proved(user, ProofOf::Certificate)),
            Ok(None) => None,
            Err(unproven @ Unproven::Invalid) => Some(unproven),
            Err(unproven) => return Err(self.refuse(ProofOf::Certificate, &unproven)),
        };
        if let Some(token) = &shown.token {
            return match self.reviewer.review(token).await {
                Ok(user) => Ok(self.proved(user, ProofOf::Token)),
                Err(unproven) => Err(self.refuse(ProofOf::Token, &unproven)),
            };
        }
        if let Some(unproven) = failed {
            return Err(self.refuse(ProofOf::Certificate, &unproven));
        }
        self.metrics.proof(ProofOf::Nothing, ProofOutcome::Proved);
        Ok(Caller {
            user: None,
            proof: ProofOf::Nothing,
        })
    }

    /// Whom to act as for the caller: itself, or whom it asks to be, if the cluster says that it may. `None` is
    /// nobody: the request goes without a credential.
    ///
    /// # Errors
    /// 403 if it may not impersonate, 422 for somebody who can't be carried, 503 where it can't be known.
    pub async fn acts_as(&self, caller: &Caller, shown: &Shown) -> Result<Option<ActsAs>, Refusal> {
        match (&caller.user, &shown.requested) {
            (None, None) => Ok(None),
            // Nobody whom an audit could name.
            (None, Some(_)) => Err(Refusal::ImpersonationForbidden),
            (Some(user), None) => ActsAs::caller(user)
                .map(Some)
                .map_err(|error| self.uncarriable(caller.proof, &error)),
            (Some(user), Some(requested)) => {
                // Before anything is asked for: a caller who can't be carried can't be shown beside whom it acts as.
                let whole = ActsAs::caller(user)
                    .and_then(|_| ActsAs::requested(requested.user())?.asked_for_by(user))
                    .map_err(|error| self.uncarriable(caller.proof, &error))?;
                nested::may(self.reviewer.client(), user, requested).await?;
                Ok(Some(whole))
            }
        }
    }

    /// Sees that the token shown is one that was made for the pod with this UID.
    ///
    /// # Errors
    /// 401 for none, or one that isn't good; 403 for another's; 503 where it can't be known.
    pub async fn is_of_pod(&self, shown: &Shown, uid: Option<&str>) -> Result<(), Refusal> {
        let token = shown.token.as_ref().ok_or(Refusal::NoPodToken)?;
        let user = self.reviewer.review(token).await.map_err(|unproven| {
            let refusal = self.refuse(ProofOf::PodToken, &unproven);
            if refusal == Refusal::Unproven {
                Refusal::NoPodToken
            } else {
                refusal
            }
        })?;
        let claims = user.extra.as_ref().and_then(|extra| extra.get(POD_UID));
        let is_its_own = uid.is_some_and(|uid| !uid.is_empty() && claims.is_some_and(|claims| *claims == [uid]));
        let outcome = if is_its_own {
            ProofOutcome::Proved
        } else {
            ProofOutcome::Invalid
        };
        self.metrics.proof(ProofOf::PodToken, outcome);
        if is_its_own {
            Ok(())
        } else {
            Err(Refusal::OtherPodsToken)
        }
    }

    fn by_certificate(&self, certificate: &Certificate, now: Timestamp) -> Result<Option<Arc<UserInfo>>, Unproven> {
        certificate
            .user(&self.authorities.in_force(), now)
            .map_err(|error| match error {
                CertificateError::AuthoritiesUnknown => Unproven::Unknown(error.to_string().into()),
                CertificateError::Unreadable(_) => Unproven::Uncarriable(error.to_string().into()),
                error => {
                    tracing::debug!(%error, "a client certificate is not accepted");
                    Unproven::Invalid
                }
            })
    }

    fn proved(&self, user: Arc<UserInfo>, proof: ProofOf) -> Caller {
        self.metrics.proof(proof, ProofOutcome::Proved);
        Caller {
            user: Some(user),
            proof,
        }
    }

    fn refuse(&self, proof: ProofOf, unproven: &Unproven) -> Refusal {
        self.metrics.proof(proof, unproven.outcome());
        if matches!(unproven, Unproven::Invalid) {
            // A caller's doing: it could fill the log with it.
            tracing::debug!("a caller is refused: {unproven}");
        } else {
            tracing::warn!("a caller is refused: {unproven}");
        }
        unproven.refusal()
    }

    fn uncarriable(&self, proof: ProofOf, error: &ActsAsError) -> Refusal {
        self.refuse(proof, &Unproven::Uncarriable(error.to_string().into()))
    }
}
