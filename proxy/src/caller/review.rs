//! Whose a bearer token is, as the API server says it (TokenReview).
//!
//! What it said of a token is good for a short while, a yes for longer than a no and never past the token's own expiry,
//! and whoever asks meanwhile waits for one answer. Tokens are kept as digests alone. The audiences are the session's,
//! and so is the memory of what was said.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use kube::{Api, api::PostParams};
use secrecy::{ExposeSecret as _, SecretString, zeroize::Zeroize as _};
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, timeout},
};

use super::{PATIENCE, Unproven};
use crate::{clock::Clock, credentials::BearerToken};

/// How long a yes is good, if the token itself doesn't expire before: a token that is withdrawn goes on for so long.
pub const YES: Duration = Duration::from_secs(10);
/// How long a no is good: a token may be new.
pub const NO: Duration = Duration::from_secs(2);
/// As many tokens are remembered for a session.
pub const REMEMBERED: usize = 1024;
/// As many are asked for at a time.
const AT_ONCE: usize = 32;

/// Has the API server say whose tokens are.
pub struct Reviewer {
    asker: Asker,
    clock: Clock,
    known: Mutex<HashMap<[u8; 32], watch::Receiver<Option<Verdict>>>>,
}

/// What asks.
#[derive(Clone)]
struct Asker {
    client: kube::Client,
    audiences: Arc<[String]>,
    turns: Arc<Semaphore>,
}

/// What was said of a token.
#[derive(Debug, Clone)]
struct Verdict {
    user: Result<Arc<UserInfo>, Unproven>,
    /// By tokio's clock, which doesn't jump.
    until: Instant,
    /// The token's own expiry.
    expires: Option<Timestamp>,
}

impl Verdict {
    fn is_good(&self, now: Timestamp) -> bool {
        Instant::now() < self.until && self.expires.is_none_or(|expires| now < expires)
    }
}

impl fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reviewer")
            .field("audiences", &self.asker.audiences)
            .finish_non_exhaustive()
    }
}

impl Reviewer {
    /// One that asks as `client`, for tokens made for one of `audiences`; where there are none, for the API server's own.
    #[must_use]
    pub fn new(client: kube::Client, audiences: Arc<[String]>, clock: Clock) -> Self {
        Self {
            asker: Asker {
                client,
                audiences,
                turns: Arc::new(Semaphore::new(AT_ONCE)),
            },
            clock,
            known: Mutex::default(),
        }
    }

    /// What it asks with.
    #[must_use]
    pub fn client(&self) -> &kube::Client {
        &self.asker.client
    }

    /// Whose the token is. Must be called within a Tokio runtime: a task asks, which goes on when the caller goes.
    pub(crate) async fn review(&self, token: &SecretString) -> Result<Arc<UserInfo>, Unproven> {
        let mut said = self.ask_once(token)?;
        let verdict = said.wait_for(Option::is_some).await;
        match verdict.as_deref() {
            Ok(Some(verdict)) => verdict.user.clone(),
            _ => Err(Unproven::Unknown("the agent is shutting down".into())),
        }
    }

    fn ask_once(&self, token: &SecretString) -> Result<watch::Receiver<Option<Verdict>>, Unproven> {
        let digest: [u8; 32] = Sha256::digest(token.expose_secret().as_bytes()).into();
        let now = self.clock.now();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(said) = known.get(&digest)
            && is_good(said, now)
        {
            return Ok(said.clone());
        }
        if known.len() >= REMEMBERED {
            make_room(&mut known, now);
        }
        if known.len() >= REMEMBERED {
            return Err(Unproven::Unknown("too many tokens are being asked for at once".into()));
        }
        let (say, said) = watch::channel(None);
        known.insert(digest, said.clone());
        let (asker, token) = (self.asker.clone(), token.clone());
        tokio::spawn(async move {
            let verdict = match timeout(PATIENCE, asker.ask(&token)).await {
                Ok(verdict) => verdict,
                Err(_) => unknown("the API server doesn't say whose a token is in time"),
            };
            say.send_replace(Some(verdict));
        });
        Ok(said)
    }
}

/// Whether a verdict stands, or is still to come: its sender goes when it has said it, or with the runtime.
fn is_good(said: &watch::Receiver<Option<Verdict>>, now: Timestamp) -> bool {
    match &*said.borrow() {
        Some(verdict) => verdict.is_good(now),
        None => said.has_changed().is_ok(),
    }
}

/// Lets go of what isn't good any more; then, should nothing go by that, of every no; then of all that is decided.
fn make_room(known: &mut HashMap<[u8; 32], watch::Receiver<Option<Verdict>>>, now: Timestamp) {
    let lets_go: [fn(&Verdict, Timestamp) -> bool; 3] = [
        |verdict, now| !verdict.is_good(now),
        |verdict, _| verdict.user.is_err(),
        |_, _| true,
    ];
    for goes in lets_go {
        known.retain(|_, said| !said.borrow().as_ref().is_some_and(|verdict| goes(verdict, now)));
        if known.len() < REMEMBERED {
            return;
        }
    }
}

fn unknown(why: impl Into<Arc<str>>) -> Verdict {
    Verdict {
        user: Err(Unproven::Unknown(why.into())),
        until: Instant::now(),
        expires: None,
    }
}

impl Asker {
    async fn ask(&self, token: &SecretString) -> Verdict {
        let Ok(_turn) = self.turns.acquire().await else {
            return unknown("the agent is shutting down");
        };
        let mut review = TokenReview {
            spec: TokenReviewSpec {
                token: token.expose_secret().to_owned(),
                audiences: (!self.audiences.is_empty()).then(|| self.audiences.to_vec()),
            },
            ..TokenReview::default()
        };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let answer = reviews.create(&PostParams::default(), &review).await;
        review.spec.token.zeroize();
        let status = match answer {
            Ok(mut answer) => {
                answer.spec.token.zeroize();
                answer.status.unwrap_or_default()
            }
            Err(error) => {
                return unknown(format!(
                    "whose a token is ({error}): see that the agent may create tokenreviews"
                ));
            }
        };
        match confirmed(status, &self.audiences) {
            Some(user) => Verdict {
                user: Ok(Arc::new(user)),
                until: Instant::now() + YES,
                // It is what was confirmed just now; a token that isn't a JWT says nothing of its expiry.
                expires: BearerToken::parse(token.expose_secret())
                    .ok()
                    .and_then(|token| token.expiry()),
            },
            None => Verdict {
                user: Err(Unproven::Invalid),
                until: Instant::now() + NO,
                expires: None,
            },
        }
    }
}

/// The user, if the token was accepted, for one of the audiences that were asked for. A server that knows nothing of
/// audiences says none, and what it confirmed is for itself.
fn confirmed(status: TokenReviewStatus, audiences: &[String]) -> Option<UserInfo> {
    let said = status.audiences.unwrap_or_default();
    let is_for_us = audiences.is_empty() || said.iter().any(|audience| audiences.contains(audience));
    let is_confirmed = status.authenticated.unwrap_or_default() && is_for_us;
    status.user.filter(|_| is_confirmed)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn status(authenticated: Option<bool>, audiences: &[&str]) -> TokenReviewStatus {
        TokenReviewStatus {
            authenticated,
            audiences: Some(audiences.iter().map(|one| (*one).to_owned()).collect()),
            user: Some(UserInfo::default()),
            ..TokenReviewStatus::default()
        }
    }

    #[rstest]
    #[case::yes(Some(true), &[], &[], true)]
    #[case::no(Some(false), &[], &[], false)]
    #[case::nothing(None, &[], &[], false)]
    #[case::ours(Some(true), &["a", "b"], &["b"], true)]
    #[case::of_another(Some(true), &["c"], &["a", "b"], false)]
    #[case::knows_no_audiences(Some(true), &[], &["a"], false)]
    #[case::the_servers_own(Some(true), &["https://kubernetes.default.svc"], &[], true)]
    fn audiences(
        #[case] authenticated: Option<bool>,
        #[case] said: &[&str],
        #[case] asked: &[&str],
        #[case] expected: bool,
    ) {
        let asked: Vec<String> = asked.iter().map(|one| (*one).to_owned()).collect();
        assert_eq!(confirmed(status(authenticated, said), &asked).is_some(), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn room_is_made_of_what_counts_least() {
        let now = Timestamp::UNIX_EPOCH;
        let said = |user: Result<(), Unproven>, seconds| {
            watch::channel(Some(Verdict {
                user: user.map(|()| Arc::new(UserInfo::default())),
                until: Instant::now() + Duration::from_secs(seconds),
                expires: None,
            }))
            .1
        };
        let full = |with: Vec<watch::Receiver<Option<Verdict>>>| {
            let mut known = HashMap::new();
            for index in 0..REMEMBERED {
                let mut digest = [0; 32];
                digest[..8].copy_from_slice(&index.to_be_bytes());
                known.insert(digest, with[index % with.len()].clone());
            }
            known
        };
        let pending = watch::channel(None).1;
        let mut known = full(vec![said(Ok(()), 0), said(Err(Unproven::Invalid), 1)]);
        make_room(&mut known, now);
        assert!(
            known.len() == REMEMBERED / 2 && known.values().all(|said| said.borrow().as_ref().unwrap().user.is_err())
        );
        let mut known = full(vec![said(Ok(()), 1), said(Err(Unproven::Invalid), 1)]);
        make_room(&mut known, now);
        assert!(
            known.len() == REMEMBERED / 2 && known.values().all(|said| said.borrow().as_ref().unwrap().user.is_ok())
        );
        let mut known = full(vec![said(Ok(()), 1), pending]);
        make_room(&mut known, now);
        assert!(known.len() == REMEMBERED / 2 && known.values().all(|said| said.borrow().is_none()));
    }
}
