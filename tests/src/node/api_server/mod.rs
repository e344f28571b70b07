//! The API server in the box: the test program, or a real one where `KUBEBUILDER_ASSETS` names it. Both hold the same
//! scene, and both tell what they saw.

mod objects;
mod options;
mod outage;
mod real;
mod rights;
mod scene;
mod seen;
mod test_program;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use rcgen::KeyPair;

pub use self::{
    options::{ServerOptions, TestServerOptions},
    seen::{Mark, SeenRequest},
};
use self::{real::RealServer, test_program::TestServer};
use super::{AuditEvent, Command, Node, audit, binaries, network::ENDPOINT_V4};
use crate::apiserver::Control;

/// An API server on the service's and the endpoint's addresses, holding the scene.
#[derive(Debug)]
pub struct ApiServer {
    node: Node,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Test(Box<TestServer>),
    Real(Box<RealServer>),
}

impl ApiServer {
    /// Starts the test program, or the real server where `KUBEBUILDER_ASSETS` names its directory.
    ///
    /// # Errors
    /// It isn't there, or doesn't become ready; the error holds the end of its log.
    pub async fn start(node: &Node) -> Result<Self> {
        Self::start_with(node, &ServerOptions::default()).await
    }

    /// As [`ApiServer::start`], as asked.
    ///
    /// # Errors
    /// As [`ApiServer::start`].
    pub async fn start_with(node: &Node, options: &ServerOptions) -> Result<Self> {
        match binaries::kubebuilder_assets() {
            Some(assets) => {
                let kind = Kind::Real(Box::new(RealServer::launch(node, &assets, options)?));
                let mut server = Self {
                    node: node.clone(),
                    kind,
                };
                server.set_scene(options).await?;
                if let Kind::Real(real) = &mut server.kind {
                    real.start_signer()?;
                }
                Ok(server)
            }
            None => Self::start_test_program(node, options).await,
        }
    }

    /// Starts the test program wherever the real one can't do what is asked: faults, limits, answers of any size.
    ///
    /// # Errors
    /// It isn't built, or doesn't become ready.
    pub async fn start_test_program(node: &Node, options: &TestServerOptions) -> Result<Self> {
        let kind = Kind::Test(Box::new(TestServer::launch(node, options)?));
        let server = Self {
            node: node.clone(),
            kind,
        };
        server.set_scene(options).await?;
        Ok(server)
    }

    /// Whether it is a real kube-apiserver.
    #[must_use]
    pub fn is_real(&self) -> bool {
        matches!(self.kind, Kind::Real(_))
    }

    /// What it is, for people.
    #[must_use]
    pub fn description(&self) -> &'static str {
        match self.kind {
            Kind::Test(_) => "the test API server",
            Kind::Real(_) => "a real kube-apiserver with etcd",
        }
    }

    /// The test program's side door: faults, settings, connections.
    ///
    /// # Errors
    /// It is a real kube-apiserver, which has none.
    pub fn control(&self) -> Result<&Control> {
        match &self.kind {
            Kind::Test(server) => Ok(server.control()),
            Kind::Real(_) => bail!("a real kube-apiserver has no side door"),
        }
    }

    /// kubectl as the cluster's administrator, past the agent: it runs beside the API server.
    ///
    /// # Errors
    /// There is no kubectl.
    pub fn admin<I: IntoIterator<Item: AsRef<std::ffi::OsStr>>>(&self, arguments: I) -> Result<Command> {
        let kubeconfig = kubeconfig(&self.node)?;
        let command = self.node.control_plane_command(binaries::kubectl()?)?;
        Ok(command.arg("--kubeconfig").arg(kubeconfig).args(arguments))
    }

    /// The administrator's kubeconfig, which leads past the agent from the node as well.
    ///
    /// # Errors
    /// It can't be written.
    pub fn kubeconfig(&self) -> Result<PathBuf> {
        kubeconfig(&self.node)
    }

    /// Now, in the order of its requests.
    ///
    /// # Errors
    /// It doesn't tell.
    pub async fn mark(&self) -> Result<Mark> {
        match &self.kind {
            Kind::Test(server) => server.mark().await,
            Kind::Real(server) => server.mark(),
        }
    }

    /// What it was sent since `mark`, the administrator's own requests left out.
    ///
    /// # Errors
    /// It doesn't tell.
    pub async fn seen_since(&self, mark: Mark) -> Result<Vec<SeenRequest>> {
        match &self.kind {
            Kind::Test(server) => server.seen_since(mark).await,
            Kind::Real(server) => server.seen_since(mark).await,
        }
    }

    /// Its own audit log: each request that it has answered to the end.
    ///
    /// # Errors
    /// It is the test program, which keeps none.
    pub fn audit(&self) -> Result<Vec<AuditEvent>> {
        match &self.kind {
            Kind::Test(_) => bail!("the test API server keeps no audit log"),
            Kind::Real(_) => audit::read(&files(&self.node).join("audit.jsonl")),
        }
    }

    async fn ready(&self) -> Result<()> {
        let asked = async || {
            let answer = self.admin(["get", "--raw=/readyz"])?.output().await?;
            Ok(answer.succeeded().then_some(()))
        };
        let answered = super::eventually("the API server is ready", asked).await;
        answered.map_err(|error| error.context(self.log_tail()))
    }

    async fn set_scene(&self, options: &ServerOptions) -> Result<()> {
        self.ready().await?;
        let objects = match self.kind {
            Kind::Test(_) => scene::objects(),
            Kind::Real(_) => format!("{}---\n{}", scene::objects(), scene::rbac(options)?),
        };
        let created = self.admin(["create", "-f", "-"])?.stdin(objects).stdout().await;
        created.context("setting the scene in the API server")?;
        // A real server makes its own service, after it is ready.
        super::eventually("the API server's service has both its addresses", async || {
            Ok(self.apply(&scene::service()).await.ok())
        })
        .await
        .map(drop)
    }

    fn log_tail(&self) -> String {
        let file = match self.kind {
            Kind::Test(_) => files(&self.node).join("apiserver.log"),
            Kind::Real(_) => files(&self.node).join("kube-apiserver.log"),
        };
        let log = fs::read_to_string(file).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

/// Where the API server's files are.
fn files(node: &Node) -> PathBuf {
    node.directory().join("control-plane")
}

fn kubeconfig(node: &Node) -> Result<PathBuf> {
    let path = files(node).join("admin.kubeconfig");
    if !path.exists() {
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "box", "cluster": {
                "server": format!("https://{ENDPOINT_V4}"),
                "certificate-authority": node.cluster_ca_file(),
            }}],
            "users": [{"name": "admin", "user": {"token": node.accounts().admin_token}}],
            "contexts": [{"name": "box", "context": {"cluster": "box", "user": "admin"}}],
            "current-context": "box",
        });
        fs::write(&path, serde_json::to_vec_pretty(&config)?)?;
    }
    Ok(path)
}

/// Writes the serving certificate and the token file, which both servers take in the same form.
fn write_credentials(node: &Node) -> Result<()> {
    let files = files(node);
    node.cluster_ca().api_server_identity()?.write(&files)?;
    fs::write(files.join("tokens.csv"), node.accounts().token_file())?;
    fs::write(files.join("ca.crt"), node.cluster_ca().certificate())?;
    fs::write(files.join("ca.key"), node.cluster_ca().key())?;
    fs::write(files.join("client-ca.crt"), node.cluster_ca().certificate())?;
    let key = KeyPair::generate()?;
    fs::write(files.join("sa.key"), key.serialize_pem())?;
    fs::write(files.join("sa.pub"), key.public_key_pem())?;
    Ok(())
}
