//! The service accounts of the scenario, and the tokens they prove themselves with. Each token is random and belongs to
//! one box, so a test can look for it wherever it must not be.

use std::fmt::Write as _;

use uuid::Uuid;

/// A service account and its bearer token.
#[derive(Debug, Clone)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: &'static str,
    /// Its name there.
    pub name: &'static str,
    /// Its UID.
    pub uid: Uuid,
    /// The token that the API server knows it by.
    pub token: String,
}

impl ServiceAccount {
    fn new(namespace: &'static str, name: &'static str) -> Self {
        Self {
            namespace,
            name,
            uid: Uuid::new_v4(),
            token: fresh_token(name),
        }
    }

    /// `system:serviceaccount:<namespace>:<name>`.
    #[must_use]
    pub fn username(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.name)
    }

    /// The groups that Kubernetes gives to every service account of the namespace, except `system:authenticated`,
    /// which the API server adds by itself.
    #[must_use]
    pub fn groups(&self) -> [String; 2] {
        [
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{}", self.namespace),
        ]
    }
}

/// Everyone in the scenario.
#[derive(Debug, Clone)]
pub struct Accounts {
    /// The pods' own account, which holds no right at all.
    pub powerless: ServiceAccount,
    /// The agent's, which may impersonate.
    pub agent: ServiceAccount,
    /// Who sessions act as: may work with pods and config maps.
    pub viewer: ServiceAccount,
    /// The cluster's administrator, for setting the scene.
    pub admin_token: String,
    /// A second token of the agent's account, for rotation.
    pub agent_next_token: String,
}

impl Accounts {
    pub(crate) fn new() -> Self {
        Self {
            powerless: ServiceAccount::new("default", "powerless"),
            agent: ServiceAccount::new("understudy", "agent"),
            viewer: ServiceAccount::new("prod", "viewer"),
            admin_token: fresh_token("admin"),
            agent_next_token: fresh_token("agent-next"),
        }
    }

    /// Every secret that must be in no log.
    #[must_use]
    pub fn secrets(&self) -> [&str; 5] {
        [
            &self.powerless.token,
            &self.agent.token,
            &self.agent_next_token,
            &self.viewer.token,
            &self.admin_token,
        ]
    }

    /// Kubernetes' static token file: token, user, UID and groups, a line each.
    #[must_use]
    pub fn token_file(&self) -> String {
        let mut lines = format!("{},admin,admin,\"system:masters\"\n", self.admin_token);
        let agent_again = ServiceAccount {
            token: self.agent_next_token.clone(),
            ..self.agent.clone()
        };
        for account in [&self.powerless, &self.agent, &agent_again, &self.viewer] {
            let groups = account.groups().join(",");
            let (token, user, uid) = (&account.token, account.username(), account.uid);
            // Writing to a String cannot fail.
            let _ = writeln!(lines, "{token},{user},{uid},\"{groups}\"");
        }
        lines
    }
}

/// As long as the tokens that the kubelet gives out, which are JWTs signed with RSA: what carries them costs accordingly.
fn fresh_token(whose: &str) -> String {
    const LENGTH: usize = 1000;
    let mut token = format!("token-of-{whose}");
    while token.len() < LENGTH {
        // Writing to a String cannot fail.
        let _ = write!(token, "-{}", Uuid::new_v4().simple());
    }
    token
}
