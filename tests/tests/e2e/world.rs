//! What most tests begin with: a node, an API server, a pod with a session, and the agent.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::Value;
use understudy_tests::node::{
    Agent, AgentOptions, ApiServer, Node, Output, Pod, PodSpec, Session, TestServerOptions, Trust, binaries, eventually,
};

/// The stated limit on how long a session's end may take to end what runs in it.
pub(crate) const WITHIN_A_SECOND: Duration = Duration::from_secs(1);
/// Where every pod has the CAs that it trusts the API server by.
pub(crate) const CA: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

/// The fields fall in this order.
pub(crate) struct World {
    pub(crate) agent: Agent,
    pub(crate) api: ApiServer,
    /// Tagged with the session.
    pub(crate) pod: Pod,
    /// On the same node, without one.
    pub(crate) untagged: Pod,
    /// support/alice, acting as the viewer.
    pub(crate) session: Session,
    pub(crate) node: Node,
}

impl World {
    /// With whatever API server there is.
    pub(crate) async fn new() -> Result<Self> {
        let node = Node::new()?;
        let api = ApiServer::start(&node).await?;
        Self::around(node, api, PodSpec::named("shell"), AgentOptions::default()).await
    }

    /// With the test API server, for tests that ask it for what a real one can't do or doesn't tell.
    pub(crate) async fn with_test_server() -> Result<Self> {
        Self::with(&TestServerOptions::default(), AgentOptions::default()).await
    }

    pub(crate) async fn with(server: &TestServerOptions, agent: AgentOptions) -> Result<Self> {
        let node = Node::new()?;
        let api = ApiServer::start_test_program(&node, server).await?;
        Self::around(node, api, PodSpec::named("shell"), agent).await
    }

    /// With whatever API server there is, and an agent whose own CA signs its certificate: the pod trusts it once it
    /// is published.
    pub(crate) async fn with_own_ca() -> Result<Self> {
        let node = Node::new()?;
        let api = ApiServer::start(&node).await?;
        let options = AgentOptions::default().trust(Trust::OwnCa);
        Self::around(node, api, PodSpec::named("shell"), options).await
    }

    pub(crate) async fn around(node: Node, api: ApiServer, pod: PodSpec, agent: AgentOptions) -> Result<Self> {
        let pod = node.pod(pod)?;
        let untagged = node.pod(PodSpec::named("untagged"))?;
        let session = Session::named("support", "alice")
            .acting_as(&node.accounts().viewer)
            .for_pod(&pod);
        node.sessions().write(&session)?;
        let agent = Agent::start(&node, agent).await?;
        Ok(Self {
            agent,
            api,
            pod,
            untagged,
            session,
            node,
        })
    }

    /// Who the session acts as.
    pub(crate) fn viewer(&self) -> String {
        self.node.accounts().viewer.username()
    }

    /// Who the pods are without one.
    pub(crate) fn powerless(&self) -> String {
        self.node.accounts().powerless.username()
    }
}

/// An answer, as curl had it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("the body is not JSON: {}", self.body))
    }

    /// Its body is a Kubernetes `Status` of that code and reason, with its length said.
    #[track_caller]
    pub(crate) fn assert_status(&self, code: u16, reason: &str) {
        assert_eq!(self.code, code, "{self:?}");
        let Ok(status) = self.json() else {
            panic!("no Status: {self:?}")
        };
        assert_eq!(status["kind"], "Status", "{self:?}");
        assert_eq!(status["apiVersion"], "v1", "{self:?}");
        assert_eq!(status["status"], "Failure", "{self:?}");
        assert_eq!(status["reason"], reason, "{self:?}");
        assert_eq!(status["code"], code, "{self:?}");
        let length = format!("content-length: {}", self.body.len());
        assert!(self.head.to_ascii_lowercase().contains(&length), "{self:?}");
    }
}

/// curl's exit code for a connection that was refused or broken off, whatever the layer.
pub(crate) fn no_answer(output: &Output) -> bool {
    !output.succeeded() && output.stdout.is_empty()
}

/// Asks for `path` from inside `pod` with curl: by the service's name, with the pod's own token and ca.crt, no other
/// flag that has to do with TLS.
pub(crate) async fn curl_raw(pod: &Pod, path: &str, arguments: &[&str]) -> Result<Output> {
    curl_at(pod, "kubernetes.default.svc", path, arguments).await
}

/// As [`curl_raw`], of the API server by another of its names, or an address and a port.
pub(crate) async fn curl_at(pod: &Pod, host: &str, path: &str, arguments: &[&str]) -> Result<Output> {
    let curl = binaries::on_path("curl").context("curl is not on PATH: apt-get install curl")?;
    pod.command(curl)
        .args([
            "--silent",
            "--show-error",
            "--dump-header",
            "/dev/stderr",
            "--max-time",
            "30",
        ])
        .args(["--cacert", CA])
        .args(["--header", &format!("Authorization: Bearer {}", pod.token())])
        .args(arguments)
        .arg(format!("https://{host}{path}"))
        .output()
        .await
}

/// As [`curl_raw`], where an answer must come.
pub(crate) async fn curl(pod: &Pod, path: &str, arguments: &[&str]) -> Result<Answer> {
    let output = curl_raw(pod, path, arguments).await?.success()?;
    let code = output
        .stderr
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .context("a status line")?;
    Ok(Answer {
        code,
        head: output.stderr,
        body: output.stdout,
    })
}

/// How many of `count` requests over one connection were answered with which code.
pub(crate) async fn ask_many(pod: &Pod, count: usize) -> Result<BTreeMap<String, usize>> {
    let path = format!("/version?n=[1-{count}]");
    let output = curl_raw(pod, &path, &["--output", "/dev/null", "--write-out", "%{http_code}\n"]).await?;
    let mut codes = BTreeMap::new();
    for code in output.stdout.lines() {
        *codes.entry(code.to_owned()).or_default() += 1;
    }
    Ok(codes)
}

/// What the probe says of each of these dials, in their order.
pub(crate) async fn dial(pod: &Pod, addresses: impl IntoIterator<Item = String>) -> Result<Vec<Value>> {
    let printed = pod
        .command(binaries::probe()?)
        .arg("dial")
        .args(addresses)
        .stdout()
        .await?;
    printed.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Who the API server takes the pod for, asked with kubectl.
pub(crate) async fn whoami(pod: &Pod) -> Result<String> {
    let output = ask_whoami(pod).await?;
    Ok(output.success()?.stdout)
}

/// Waits until the API server takes the pod for that user.
///
/// A request that meets the change of its session may be cut short: it is asked again.
pub(crate) async fn becomes(pod: &Pod, user: &str) -> Result<()> {
    eventually(&format!("the pod acts as {user}"), async || {
        let output = ask_whoami(pod).await?;
        Ok((output.succeeded() && output.stdout == user).then_some(()))
    })
    .await
}

async fn ask_whoami(pod: &Pod) -> Result<Output> {
    pod.kubectl("auth whoami -o jsonpath={.status.userInfo.username}").await
}
