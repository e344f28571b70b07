//! Who may ask over TCP. A forwarded port comes from the node's loopback, where others may be as well, and who may forward
//! ports isn't thereby an operator. So a client shows a bearer token that was made for this very node's agent, which the API
//! server confirms (`TokenReview`), of somebody who may `get` the `agents.understudy.dev` of this node's name
//! (`SubjectAccessReview`). A token that an impostor on one node should come by is good for no other node, and for nothing
//! of the API server's.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, StatusCode};
use k8s_openapi::api::{
    authentication::v1::UserInfo,
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, api::PostParams};
use tokio::time::timeout;

use crate::{
    caller::{Unproven, review::Reviewer, token},
    clock::Clock,
};

/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// For whom an operator's token is made: the agent of one node.
#[must_use]
pub fn audience(node: &str) -> String {
    format!("{node}.agents.understudy.dev")
}

/// Why somebody isn't let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No token that is one.
    #[error("show a bearer token that was made for the audience {audience}")]
    NoToken {
        /// For whom it has to be made.
        audience: String,
    },
    /// The API server doesn't confirm it.
    #[error("the API server doesn't confirm the token: it has to be made for the audience {audience}, and be in time")]
    Unproven {
        /// For whom it has to be made.
        audience: String,
    },
    /// Somebody who may not.
    #[error("{user} may not get agents.understudy.dev {node:?}: bind it to a ClusterRole that allows it")]
    Forbidden {
        /// Who.
        user: String,
        /// Which agent.
        node: String,
    },
    /// It can't be known.
    #[error(
        "the agent can't ask the API server whose the token is: see that it may create tokenreviews and subjectaccessreviews"
    )]
    Unknown,
}

impl Denied {
    pub(super) fn code(&self) -> StatusCode {
        match self {
            Self::NoToken { .. } | Self::Unproven { .. } => StatusCode::UNAUTHORIZED,
            Self::Forbidden { .. } => StatusCode::FORBIDDEN,
            Self::Unknown => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// Who decides.
#[derive(Debug)]
pub struct Access {
    node: Arc<str>,
    reviewer: Reviewer,
}

impl Access {
    /// As the API server says, asked by `client`, of this node's agent.
    #[must_use]
    pub fn new(client: kube::Client, node: Arc<str>, clock: Clock) -> Self {
        let audiences = Arc::from([audience(&node)]);
        Self {
            reviewer: Reviewer::new(client, audiences, clock),
            node,
        }
    }

    /// Whether the client may ask.
    ///
    /// # Errors
    /// Why not. What the API server can't be asked is refused.
    pub async fn admit(&self, headers: &HeaderMap) -> Result<(), Denied> {
        let audience = || audience(&self.node);
        let token = token::shown(headers, false)
            .ok()
            .flatten()
            .ok_or_else(|| Denied::NoToken { audience: audience() })?;
        let user = match self.reviewer.review(&token).await {
            Ok(user) => user,
            Err(Unproven::Invalid) => return Err(Denied::Unproven { audience: audience() }),
            Err(_) => return Err(Denied::Unknown),
        };
        if self.may(&user).await? {
            return Ok(());
        }
        Err(Denied::Forbidden {
            user: user.username.clone().unwrap_or_default(),
            node: self.node.to_string(),
        })
    }

    async fn may(&self, user: &UserInfo) -> Result<bool, Denied> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: user.username.clone(),
                uid: user.uid.clone(),
                groups: user.groups.clone(),
                extra: user.extra.clone(),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some("get".to_owned()),
                    group: Some("understudy.dev".to_owned()),
                    resource: Some("agents".to_owned()),
                    name: Some(self.node.to_string()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let reviews: Api<SubjectAccessReview> = Api::all(self.reviewer.client().clone());
        let params = PostParams::default();
        match timeout(PATIENCE, reviews.create(&params, &review)).await {
            Ok(Ok(answer)) => Ok(answer.status.is_some_and(|status| status.allowed)),
            Ok(Err(error)) => {
                tracing::warn!(%error, "an operator isn't let in: whether it may ask can't be told");
                Err(Denied::Unknown)
            }
            Err(_) => Err(Denied::Unknown),
        }
    }
}
