//! `caller-identity` of session files, with the clients that people use: whoever they prove to be is who the API server
//! sees, whole.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use understudy_cases::{Area, seen};
use understudy_tests::node::{
    Agent, AgentOptions, ApiServer, Client, Command, Node, Pod, PodSpec, SeenRequest, Session, binaries,
};

use crate::world::CA;

/// A pod under an account, with a token that was made for that very pod. The fields fall in this order.
struct Scene {
    _agent: Agent,
    api: ApiServer,
    pod: Pod,
    /// Without a session, with the same token: what it is told is the API server's own word.
    direct: Pod,
    node: Node,
}

impl Scene {
    async fn new() -> Result<Self> {
        let node = Node::new()?;
        let api = ApiServer::start(&node).await?;
        let pod = node.pod(with_own_token(&api, "shell").await?)?;
        let direct = node.pod(PodSpec::named("direct").token(pod.token()))?;
        let session = Session::named("support", "alice").for_pod(&pod);
        let session = session.field("authMethod", json!("caller-identity"));
        node.sessions().write(&session)?;
        api.grant(&node.accounts().agent.username(), &rights_of_agent()).await?;
        let client_ca = api.client_ca_file();
        let options = AgentOptions::default().arg("--client-ca-file");
        let agent = Agent::start(&node, options.arg(&client_ca.display().to_string())).await?;
        Ok(Self {
            _agent: agent,
            api,
            pod,
            direct,
            node,
        })
    }

    /// kubectl in a pod, with nothing but this certificate.
    fn kubectl(&self, pod: &Pod, client: &Client, words: &[&str]) -> Result<Command> {
        let directory = self.node.directory().join("client");
        if !directory.exists() {
            self.node.cluster_ca().client_identity(client)?.write(&directory)?;
        }
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "box",
            "clusters": [{"name": "box", "cluster": {
                "server": "https://kubernetes.default.svc",
                "certificate-authority": CA,
            }}],
            "users": [{"name": "caller", "user": {
                "client-certificate": directory.join("tls.crt"), "client-key": directory.join("tls.key"),
            }}],
            "contexts": [{"name": "box", "context": {"cluster": "box", "user": "caller"}}],
        });
        let file = directory.join("kubeconfig");
        std::fs::write(&file, config.to_string())?;
        Ok(pod
            .command(binaries::kubectl()?)
            .arg("--kubeconfig")
            .arg(file)
            .args(words))
    }
}

/// A pod's object, and the pod as kubelet would start it.
async fn with_own_token(api: &ApiServer, name: &str) -> Result<PodSpec> {
    let spec = api.create_pod(PodSpec::named(name).account("powerless")).await?;
    let token = api.account_token("default", "powerless", &[], Some(name)).await?;
    Ok(spec.token(&token))
}

/// What an agent needs for sessions of this kind, in a cluster whose operator lets it carry anybody.
fn rights_of_agent() -> Value {
    let extra = ["credential-id", "pod-name", "pod-uid", "node-name", "node-uid"]
        .map(|key| format!("userextras/authentication.kubernetes.io/{key}"));
    let rule = |group: &str, resources: Value, verb: &str| json!({"apiGroups": [group], "resources": resources, "verbs": [verb]});
    json!([
        rule("authentication.k8s.io", json!(["tokenreviews"]), "create"),
        rule("authorization.k8s.io", json!(["subjectaccessreviews"]), "create"),
        rule("", json!(["users", "groups", "serviceaccounts"]), "impersonate"),
        rule("authentication.k8s.io", json!(["uids"]), "impersonate"),
        rule("authentication.k8s.io", json!(extra), "impersonate"),
    ])
}

async fn user(command: Command) -> Result<Value> {
    let printed = command.stdout().await?;
    let review: Value = serde_json::from_str(&printed).with_context(|| format!("no review: {printed}"))?;
    Ok(review["status"]["userInfo"].clone())
}

/// The last request that the API server served as that user.
async fn served(api: &ApiServer, mark: understudy_tests::node::Mark, user: &str) -> Result<SeenRequest> {
    let all = api.seen_since(mark).await?;
    let last = all.into_iter().rfind(|request| request.user == user);
    last.with_context(|| format!("nothing was served as {user}"))
}

#[tokio::test]
async fn kubectl_with_a_certificate_is_who_it_is_without_us() -> Result<()> {
    let scene = Scene::new().await?;
    let client = Client::new("alice").group("dev").group("ops").uid("u-1");
    let words = ["auth", "whoami", "-o", "json"];
    let without = user(scene.kubectl(&scene.direct, &client, &words)?).await?;
    assert_eq!(
        (&without["username"], &without["uid"]),
        (&json!("alice"), &json!("u-1"))
    );
    let mark = scene.api.mark().await?;
    let with = user(scene.kubectl(&scene.pod, &client, &words)?).await?;
    assert_eq!(with, without);
    let request = served(&scene.api, mark, "alice").await?;
    assert_eq!(request.impersonator, Some(scene.node.accounts().agent.username()));
    seen(
        Area::Identity,
        "A client certificate with name, groups and UID, by kubectl",
        "the API server sees the same user as it does without the agent",
    );
    Ok(())
}

#[tokio::test]
async fn pythons_client_with_the_pods_token_is_who_it_is_without_us() -> Result<()> {
    const SCRIPT: &str = "\
import json
from kubernetes import client, config
config.load_incluster_config()
review = {'apiVersion': 'authentication.k8s.io/v1', 'kind': 'SelfSubjectReview'}
review = client.AuthenticationV1Api().create_self_subject_review(review)
print(json.dumps(client.ApiClient().sanitize_for_serialization(review)))
";
    let scene = Scene::new().await?;
    let python = |pod: &Pod| Ok::<_, anyhow::Error>(pod.command(binaries::python()?).args(["-c", SCRIPT]));
    let without = user(python(&scene.direct)?).await?;
    let uid = scene.pod.spec().given_uid().map(|uid| uid.to_string());
    assert_eq!(
        without["extra"]["authentication.kubernetes.io/pod-uid"][0].as_str(),
        uid.as_deref()
    );
    let mark = scene.api.mark().await?;
    let with = user(python(&scene.pod)?).await?;
    assert_eq!(with, without);
    let name = with["username"].as_str().unwrap_or_default();
    let request = served(&scene.api, mark, name).await?;
    assert_eq!(request.impersonator, Some(scene.node.accounts().agent.username()));
    assert!(
        !request.holds(scene.pod.token()),
        "the caller's own token stays with the agent"
    );
    Ok(())
}
