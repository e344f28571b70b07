//! What an API server in the box is asked to be. What only the test program can do is said so.

use std::time::Duration;

use crate::node::Trust;

/// What the API server is asked to be.
#[derive(Debug, Clone, Default)]
pub struct ServerOptions {
    pub(super) max_streams: Option<u32>,
    pub(super) certificate_life: Option<Duration>,
    pub(super) service_account_admission: bool,
    pub(super) rights: Option<Trust>,
    pub(super) no_approval: bool,
}

/// The options of [`super::ApiServer::start_test_program`].
pub type TestServerOptions = ServerOptions;

impl ServerOptions {
    /// How many concurrent streams the test program allows on an HTTP/2 connection; a real server has its own limit.
    #[must_use]
    pub fn max_streams(mut self, streams: u32) -> Self {
        self.max_streams = Some(streams);
        self
    }

    /// How long what the cluster's signer signs lasts at most; a year where it isn't said.
    #[must_use]
    pub fn certificate_life(mut self, life: Duration) -> Self {
        self.certificate_life = Some(life);
        self
    }

    /// Leaves the admission plugin on that gives each pod its service account's token, which the real server alone
    /// has: `kube-api-access` volumes are there then, for an admission policy to change.
    #[must_use]
    pub fn service_account_admission(mut self) -> Self {
        self.service_account_admission = true;
        self
    }

    /// Grants the agent what `deploy` does for that way of trust, and nothing else; where it isn't said, it has the
    /// rights of all of them at once, and those to every Secret.
    #[must_use]
    pub fn rights_of(mut self, trust: Trust) -> Self {
        self.rights = Some(trust);
        self
    }

    /// Keeps from the agent the right to approve what it asks the cluster's signer for.
    #[must_use]
    pub fn without_approval(mut self) -> Self {
        self.no_approval = true;
        self
    }

    pub(super) fn signing_seconds(&self) -> u64 {
        self.certificate_life
            .unwrap_or(Duration::from_hours(365 * 24))
            .as_secs()
    }
}
