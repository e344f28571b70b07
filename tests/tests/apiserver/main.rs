//! The API server of the tests, itself tested on loopback: by plain HTTP clients, by WebSocket and raw upgrades, and
//! by the real kubectl.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails where it panics, in its helpers too"
)]

mod both;
mod client;
mod faults;
mod http_rules;
mod kubectl;
mod policies;
mod process;
mod upgrades;
mod watches;

use std::path::PathBuf;

use serde_json::json;
use tempfile::TempDir;
use understudy_tests::apiserver::{ApiServer, Builder, Control, EventType};

const ADMIN: &str = "admin-token";
const AGENT: &str = "agent-token";
const POD: &str = "pod-token";
const TOKENS: &str = r#"
admin-token,admin,u-0,"system:masters"
agent-token,system:serviceaccount:understudy:agent,u-1,"system:serviceaccounts,system:serviceaccounts:understudy"
pod-token,system:serviceaccount:support:shell,u-2,"system:serviceaccounts,system:serviceaccounts:support"
"#;
const RULES: &str = "
rules:
- serviceAccounts: [understudy/agent]
  verbs: [impersonate]
  resources: [serviceaccounts, groups]
- serviceAccounts: [prod/viewer]
  verbs: [get, list, watch]
  resources: [pods]
";

/// A server with a pod, and all that it leaves behind in a directory of its own.
struct Fixture {
    server: ApiServer,
    control: Control,
    dir: TempDir,
}

impl Fixture {
    async fn start() -> Self {
        Self::with(|builder| builder.tokens(TOKENS).rules(RULES)).await
    }

    async fn with(build: impl FnOnce(Builder) -> Builder) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let builder = ApiServer::builder()
            .listen("127.0.0.1:0".parse().unwrap())
            .listen("[::1]:0".parse().unwrap())
            .control(dir.path().join("control"))
            .ca_file(dir.path().join("ca.crt"));
        let server = build(builder).start().await.unwrap();
        let control = server.control().unwrap();
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "web-0", "namespace": "default"},
            "spec": {"containers": [{"name": "web", "image": "web"}]},
        });
        control.push(EventType::Added, pod).await.unwrap();
        Self { server, control, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}
