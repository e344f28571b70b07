//! Callers that prove who they are, to an API server that knows them as well: through the agent it sees whom it sees
//! without.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use understudy_cases::{Area, seen};
use understudy_tests::node::{
    Agent, AgentOptions, ApiServer, Client, Node, Output, Pod, PodSpec, Session, binaries, eventually,
};

use crate::world::{Answer, CA, curl};

const WHOAMI: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

/// The fields fall in this order.
struct Stage {
    _agent: Agent,
    api: ApiServer,
    /// In the session, with a token of its own.
    pod: Pod,
    /// With the same token, and no session.
    direct: Pod,
    node: Node,
}

impl Stage {
    /// A pod of the powerless account in a session of this spec.
    async fn new(fields: &[(&str, Value)]) -> Result<Self> {
        let node = Node::new()?;
        let api = ApiServer::start(&node).await?;
        api.define_sessions().await?;
        let mut session = Session::named("default", "alice");
        for (name, value) in fields {
            session = session.field(name, value.clone());
        }
        api.write_session(&session).await?;
        let powerless = &node.accounts().powerless;
        // Whom the agent may impersonate, by name, as an operator would say it.
        let rules = json!([
            {"apiGroups": [""], "resources": ["serviceaccounts"], "resourceNames": [powerless.name], "verbs": ["impersonate"]},
            {"apiGroups": [""], "resources": ["users"], "resourceNames": ["jane", "bob"], "verbs": ["impersonate"]},
            {"apiGroups": [""], "resources": ["groups"], "verbs": ["impersonate"], "resourceNames":
                ["devs", "system:authenticated", "system:serviceaccounts", "system:serviceaccounts:default"]},
        ]);
        api.grant(&node.accounts().agent.username(), &rules).await?;
        let agent = Agent::start(&node, AgentOptions::cluster()).await?;

        let spec = PodSpec::named("shell").account(powerless.name).session("alice");
        let spec = api.create_pod(spec).await?;
        let token = api.account_token("default", powerless.name, &[], Some("shell")).await?;
        let pod = node.pod(spec.token(&token))?;
        let direct = node.pod(PodSpec::named("direct").token(&token))?;
        let stage = Self {
            _agent: agent,
            api,
            pod,
            direct,
            node,
        };
        eventually("the pod is enrolled, in a session in force", async || {
            let answer = curl(&stage.pod, "/api", &[]).await;
            Ok(answer.ok().filter(|answer| answer.code == 200))
        })
        .await?;
        Ok(stage)
    }

    async fn callers_own() -> Result<Self> {
        Self::new(&[("authMethod", json!("caller-identity"))]).await
    }

    /// A certificate of the cluster's, as kubectl's arguments.
    fn certificate(&self, client: &Client) -> Result<String> {
        let directory = self.node.directory().join("client");
        self.node.cluster_ca().client_identity(client)?.write(&directory)?;
        Ok(format!(
            "--client-certificate={0}/tls.crt --client-key={0}/tls.key",
            directory.display()
        ))
    }

    /// What kubectl is told of who it is, in both pods, if it is told the same.
    async fn same_for_both(&self, arguments: &str) -> Result<Value> {
        let line = format!(
            "--server=https://kubernetes.default.svc --certificate-authority={CA} {arguments} auth whoami -o json"
        );
        let user = |output: Output| -> Result<Value> {
            let said: Value = serde_json::from_str(&output.success()?.stdout)?;
            Ok(said["status"]["userInfo"].clone())
        };
        let (through, direct) = (
            user(self.pod.kubectl(&line).await?)?,
            user(self.direct.kubectl(&line).await?)?,
        );
        assert_eq!(through, direct, "through the agent and without");
        Ok(through)
    }
}

#[tokio::test]
async fn a_caller_is_the_same_through_the_agent_as_without() -> Result<()> {
    let stage = Stage::callers_own().await?;
    let mark = stage.api.mark().await?;

    let by_token = stage.same_for_both(&format!("--token={}", stage.pod.token())).await?;
    assert_eq!(by_token["username"], stage.node.accounts().powerless.username());
    let uids = &by_token["extra"]["authentication.kubernetes.io/pod-uid"];
    assert_eq!(*uids, json!([stage.pod.uid().to_string()]));

    let jane = Client::new("jane").group("devs").uid("u-1");
    let certificate = stage.certificate(&jane)?;
    let by_certificate = stage.same_for_both(&certificate).await?;
    assert_eq!(by_certificate["username"], "jane");
    assert_eq!(by_certificate["groups"], json!(["devs", "system:authenticated"]));

    // Nobody at all: what a server lets such a one do, it does here.
    let (through, direct) = (ask_as(&stage.pod, None).await?, ask_as(&stage.direct, None).await?);
    let message = |body: &str| -> Result<String> {
        let status: Value = serde_json::from_str(body)?;
        Ok(status["message"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(
        (through.code, message(&through.body)?),
        (direct.code, message(&direct.body)?)
    );

    let bad = Some("nobodys");
    let (through, direct) = (ask_as(&stage.pod, bad).await?, ask_as(&stage.direct, bad).await?);
    through.assert_status(401, "Unauthorized");
    assert_eq!(direct.code, 401);

    let whoami: Vec<_> = stage
        .api
        .seen_since(mark)
        .await?
        .into_iter()
        .filter(|request| request.uri.starts_with(WHOAMI))
        .map(|request| (request.user, request.impersonator))
        .collect();
    let agent = Some(stage.node.accounts().agent.username());
    let powerless = stage.node.accounts().powerless.username();
    assert_eq!(
        whoami,
        [
            (powerless.clone(), agent.clone()),
            (powerless, None),
            ("jane".to_owned(), agent),
            ("jane".to_owned(), None),
        ]
    );
    seen(
        Area::Identity,
        "kubectl with a token, a certificate, nothing, and a false token, through the agent and without",
        "the API server says the same of both",
    );
    Ok(())
}

#[tokio::test]
async fn a_caller_who_may_impersonates_and_both_are_in_the_audit() -> Result<()> {
    let stage = Stage::callers_own().await?;
    let jane = Client::new("jane").group("devs");
    let certificate = stage.certificate(&jane)?;
    let line = |user: &str, what: &str| {
        format!("--server=https://kubernetes.default.svc --certificate-authority={CA} {certificate} --as={user} {what}")
    };
    let is_refused = async |user: &str| -> Result<()> {
        let output = stage.pod.kubectl(&line(user, "get --raw=/api")).await?;
        assert!(
            !output.succeeded() && output.stderr.contains("may not impersonate"),
            "{output:?}"
        );
        Ok(())
    };
    is_refused("bob").await?;

    let rules =
        json!([{"apiGroups": [""], "resources": ["users"], "resourceNames": ["bob"], "verbs": ["impersonate"]}]);
    stage.api.grant("jane", &rules).await?;
    let mark = stage.api.mark().await?;
    let said = eventually("jane may be bob", async || {
        let output = stage.pod.kubectl(&line("bob", "auth whoami -o json")).await?;
        Ok(output.succeeded().then_some(output.stdout))
    })
    .await?;
    let user: Value = serde_json::from_str(&said)?;
    let user = &user["status"]["userInfo"];
    assert_eq!(user["username"], "bob");
    assert_eq!(user["groups"], json!(["system:authenticated"]));
    let original = &user["extra"]["original-user-info.understudy.dev"][0];
    let original: Value = serde_json::from_str(original.as_str().context("the caller is named")?)?;
    assert_eq!(original["username"], "jane");
    assert_eq!(original["groups"], json!(["devs", "system:authenticated"]));

    let requests = stage.api.seen_since(mark).await?;
    let whoami = requests
        .iter()
        .find(|request| request.uri.starts_with(WHOAMI) && request.user == "bob");
    let whoami = whoami.context("the API server saw bob")?;
    assert_eq!(whoami.impersonator, Some(stage.node.accounts().agent.username()));
    assert!(
        whoami.extra.contains_key("original-user-info.understudy.dev"),
        "{whoami:?}"
    );

    is_refused("root").await?;
    Ok(())
}

#[tokio::test]
async fn a_session_is_lent_to_its_pods_own_token_alone() -> Result<()> {
    let viewer = json!({"namespace": "prod", "serviceAccountName": "viewer"});
    let stage = Stage::new(&[
        ("authMethod", json!("gateway-kubernetes-auth")),
        ("impersonate", viewer),
        ("requirePodToken", json!(true)),
    ])
    .await?;
    let whoami = stage
        .pod
        .kubectl("auth whoami -o jsonpath={.status.userInfo.username}")
        .await?;
    assert_eq!(whoami.success()?.stdout, stage.node.accounts().viewer.username());

    let powerless = stage.node.accounts().powerless.name;
    stage.api.create_pod(PodSpec::named("other").account(powerless)).await?;
    let others = stage
        .api
        .account_token("default", powerless, &[], Some("other"))
        .await?;
    let bound_to_none = stage.api.account_token("default", powerless, &[], None).await?;
    let mark = stage.api.mark().await?;
    for (token, code, reason) in [
        (others.as_str(), 403, "Forbidden"),
        (bound_to_none.as_str(), 403, "Forbidden"),
        ("nobodys", 401, "Unauthorized"),
    ] {
        ask_as(&stage.pod, Some(token)).await?.assert_status(code, reason);
    }
    ask_as(&stage.pod, None).await?.assert_status(401, "Unauthorized");
    let requests = stage.api.seen_since(mark).await?;
    assert!(
        requests.iter().all(|request| !request.uri.starts_with("/api/v1/")),
        "{requests:?}"
    );
    Ok(())
}

/// With this token alone to say who asks.
async fn ask_as(pod: &Pod, token: Option<&str>) -> Result<Answer> {
    let curl = binaries::on_path("curl").context("curl is not on PATH: apt-get install curl")?;
    let header = token.map(|token| format!("Authorization: Bearer {token}"));
    let output = pod
        .command(curl)
        .args([
            "--silent",
            "--show-error",
            "--dump-header",
            "/dev/stderr",
            "--max-time",
            "30",
            "--cacert",
            CA,
        ])
        .args(header.iter().flat_map(|header| ["--header", header.as_str()]))
        .arg("https://kubernetes.default.svc/api/v1/namespaces/prod/pods")
        .output()
        .await?
        .success()?;
    let code = output.stderr.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok(Answer {
        code: code.context("a status line")?,
        head: output.stderr,
        body: output.stdout,
    })
}
