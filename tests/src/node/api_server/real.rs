//! A real kube-apiserver on a real etcd, from the directory that `KUBEBUILDER_ASSETS` names. What it saw is read from
//! its audit log.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde::Deserialize;
use tokio::process::Child;

use super::{Mark, SeenRequest, ServerOptions, files, kubeconfig, write_credentials};
use crate::node::{
    Node, binaries,
    network::{ENDPOINT_V4, SERVICE_V4, SERVICE_V6},
};

/// Everything but what the server asks itself and the administrator asks it, twice for what lasts: as it starts to
/// answer and as it ends.
const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: None, users: [\"system:apiserver\", admin]}
- {level: Metadata}
";

/// etcd, kube-apiserver, the signer, and the relay that answers on the service's own addresses.
#[derive(Debug)]
pub(super) struct RealServer {
    node: Node,
    options: ServerOptions,
    assets: PathBuf,
    server: Child,
    signer: Option<Child>,
    /// etcd and the relay.
    _others: [Child; 2],
}

impl RealServer {
    pub(super) fn launch(node: &Node, assets: &Path, options: &ServerOptions) -> Result<Self> {
        let files = files(node);
        write_credentials(node)?;
        fs::write(files.join("audit-policy.yaml"), AUDIT_POLICY)?;

        let etcd = node.control_plane_command(assets.join("etcd"))?.args([
            format!("--data-dir={}", files.join("etcd").display()),
            "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
            "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
            "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
            "--initial-advertise-peer-urls=http://127.0.0.1:2380".to_owned(),
            "--initial-cluster=default=http://127.0.0.1:2380".to_owned(),
            "--unsafe-no-fsync".to_owned(),
        ]);
        let etcd = etcd.spawn_logging_to(&files.join("etcd.log"))?;

        let server = serve(node, assets, options)?;

        let relay = node.control_plane_command(binaries::probe()?)?.args([
            "relay".to_owned(),
            format!("--listen={SERVICE_V4}"),
            format!("--listen={SERVICE_V6}"),
            format!("--target={ENDPOINT_V4}"),
        ]);
        let relay = relay.spawn_logging_to(&files.join("relay.log"))?;
        Ok(Self {
            node: node.clone(),
            options: options.clone(),
            assets: assets.to_owned(),
            server,
            signer: None,
            _others: [etcd, relay],
        })
    }

    /// Starts kube-controller-manager, where it is there, once kube-apiserver is ready: it waits for that for a few
    /// seconds only.
    pub(super) fn start_signer(&mut self) -> Result<()> {
        self.signer = sign(&self.node, &self.assets, &self.options)?;
        Ok(())
    }

    pub(super) fn process(&mut self) -> &mut Child {
        &mut self.server
    }

    /// Starts kube-apiserver again; etcd has stayed.
    pub(super) fn start_again(&mut self) -> Result<()> {
        self.server = serve(&self.node, &self.assets, &self.options)?;
        Ok(())
    }

    pub(super) fn mark(&self) -> Result<Mark> {
        Ok(Mark(self.log()?.len() as u64))
    }

    pub(super) async fn seen_since(&self, mark: Mark) -> Result<Vec<SeenRequest>> {
        let log = self.settled_log().await?;
        let new = log.get(usize::try_from(mark.0)?..).unwrap_or_default();
        let complete = new.rsplit_once('\n').map_or("", |(complete, _)| complete);
        let mut seen: Vec<(String, SeenRequest)> = Vec::new();
        for line in complete.lines() {
            let event: Event = serde_json::from_str(line).with_context(|| format!("no audit event: {line}"))?;
            let id = event.audit_id.clone();
            let request = SeenRequest::from(event);
            match seen.iter_mut().find(|(earlier, _)| *earlier == id) {
                Some((_, earlier)) => *earlier = request,
                None => seen.push((id, request)),
            }
        }
        Ok(seen.into_iter().map(|(_, request)| request).collect())
    }

    /// An event is written a moment after its answer was sent: this waits until nothing more comes.
    async fn settled_log(&self) -> Result<String> {
        let mut log = self.log()?;
        loop {
            tokio::time::sleep(Duration::from_millis(150)).await;
            let later = self.log()?;
            if later.len() == log.len() {
                return Ok(log);
            }
            log = later;
        }
    }

    fn log(&self) -> Result<String> {
        fs::read_to_string(files(&self.node).join("audit.jsonl")).context("reading kube-apiserver's audit log")
    }
}

fn serve(node: &Node, assets: &Path, options: &ServerOptions) -> Result<Child> {
    let files = files(node);
    let file = |name: &str| files.join(name).display().to_string();
    let mut command = node.control_plane_command(assets.join("kube-apiserver"))?.args([
        "--etcd-servers=http://127.0.0.1:2379".to_owned(),
        "--bind-address=::".to_owned(),
        format!("--secure-port={}", ENDPOINT_V4.port()),
        format!("--advertise-address={}", ENDPOINT_V4.ip()),
        "--endpoint-reconciler-type=none".to_owned(),
        "--service-cluster-ip-range=10.96.0.0/16,fd00:96::/112".to_owned(),
        format!("--tls-cert-file={}", file("tls.crt")),
        format!("--tls-private-key-file={}", file("tls.key")),
        format!("--token-auth-file={}", file("tokens.csv")),
        format!("--client-ca-file={}", file("client-ca.crt")),
        "--authorization-mode=RBAC".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        format!("--service-account-key-file={}", file("sa.pub")),
        format!("--service-account-signing-key-file={}", file("sa.key")),
        format!("--audit-policy-file={}", file("audit-policy.yaml")),
        format!("--audit-log-path={}", file("audit.jsonl")),
    ]);
    if !options.service_account_admission {
        // It would ask for service account objects that only a controller makes.
        command = command.arg("--disable-admission-plugins=ServiceAccount");
    }
    command.spawn_logging_to(&files.join("kube-apiserver.log"))
}

/// kube-controller-manager as the cluster's signer and nothing else, where it is there.
fn sign(node: &Node, assets: &Path, options: &ServerOptions) -> Result<Option<Child>> {
    let program = assets.join("kube-controller-manager");
    if !program.exists() {
        return Ok(None);
    }
    let files = files(node);
    let file = |name: &str| files.join(name).display().to_string();
    let kubeconfig = kubeconfig(node)?;
    let command = node.control_plane_command(program)?.args([
        format!("--kubeconfig={}", kubeconfig.display()),
        "--controllers=certificatesigningrequest-signing-controller".to_owned(),
        format!("--cluster-signing-cert-file={}", file("ca.crt")),
        format!("--cluster-signing-key-file={}", file("ca.key")),
        format!("--cluster-signing-duration={}s", options.signing_seconds()),
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
    ]);
    command
        .spawn_logging_to(&files.join("kube-controller-manager.log"))
        .map(Some)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    #[serde(rename = "auditID")]
    audit_id: String,
    #[serde(rename = "requestURI")]
    request_uri: String,
    verb: String,
    user: User,
    #[serde(default)]
    impersonated_user: Option<User>,
    #[serde(default, rename = "sourceIPs")]
    source_ips: Vec<String>,
    #[serde(default)]
    response_status: Option<ResponseStatus>,
}

#[derive(Debug, Default, Deserialize)]
struct User {
    #[serde(default)]
    username: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    extra: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct ResponseStatus {
    code: Option<u16>,
}

impl From<Event> for SeenRequest {
    fn from(event: Event) -> Self {
        let (user, impersonator) = match event.impersonated_user {
            Some(user) => (user, Some(event.user.username)),
            None => (event.user, None),
        };
        let method = match event.verb.as_str() {
            "get" | "list" | "watch" => "GET",
            "create" => "POST",
            "update" => "PUT",
            "patch" => "PATCH",
            "delete" | "deletecollection" => "DELETE",
            // A path that is no resource has its method as its verb.
            other => other,
        };
        Self {
            method: method.to_ascii_uppercase(),
            uri: event.request_uri,
            user: user.username,
            uid: user.uid,
            groups: user.groups,
            extra: user.extra,
            impersonator,
            from: event.source_ips.first().and_then(|ip| ip.parse().ok()),
            code: event.response_status.and_then(|status| status.code),
            headers: None,
            connection: None,
        }
    }
}
