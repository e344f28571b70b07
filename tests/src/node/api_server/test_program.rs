//! The test program as the box's API server.

use std::fs;

use anyhow::Result;
use tokio::process::Child;

use super::{Mark, SeenRequest, ServerOptions, files, scene, write_credentials};
use crate::{
    apiserver::{Control, Recorded},
    node::{Node, binaries, network::API_SERVER},
};

#[derive(Debug)]
pub(super) struct TestServer {
    node: Node,
    options: ServerOptions,
    control: Control,
    process: Child,
}

impl TestServer {
    pub(super) fn launch(node: &Node, options: &ServerOptions) -> Result<Self> {
        write_credentials(node)?;
        fs::write(files(node).join("rules.yaml"), scene::rules(options)?)?;
        Ok(Self {
            node: node.clone(),
            options: options.clone(),
            control: Control::new(files(node).join("control")),
            process: spawn(node, options)?,
        })
    }

    pub(super) fn process(&mut self) -> &mut Child {
        &mut self.process
    }

    /// Starts it again, with the objects that it had.
    pub(super) fn start_again(&mut self) -> Result<()> {
        self.process = spawn(&self.node, &self.options)?;
        Ok(())
    }

    pub(super) fn control(&self) -> &Control {
        &self.control
    }

    pub(super) async fn mark(&self) -> Result<Mark> {
        Ok(Mark(
            self.control.requests().await?.last().map_or(0, |request| request.id),
        ))
    }

    pub(super) async fn seen_since(&self, mark: Mark) -> Result<Vec<SeenRequest>> {
        let requests = self.control.requests().await?.into_iter();
        let new = requests.filter(|request| request.id > mark.0).map(SeenRequest::from);
        Ok(new.filter(|request| request.user != "admin").collect())
    }
}

fn spawn(node: &Node, options: &ServerOptions) -> Result<Child> {
    let files = files(node);
    let mut command = node.control_plane_command(binaries::apiserver()?)?;
    for (flag, name) in [
        ("--control", "control"),
        ("--state", "state.json"),
        ("--tls-cert", "tls.crt"),
        ("--tls-key", "tls.key"),
        ("--token-auth-file", "tokens.csv"),
        ("--rules", "rules.yaml"),
        ("--client-ca-file", "client-ca.crt"),
        ("--service-account-signing-key-file", "sa.key"),
        ("--cluster-signing-cert-file", "ca.crt"),
        ("--cluster-signing-key-file", "ca.key"),
    ] {
        command = command.arg(flag).arg(files.join(name));
    }
    command = command
        .arg("--cluster-signing-duration")
        .arg(options.signing_seconds().to_string());
    for address in API_SERVER {
        command = command.arg("--listen").arg(address.to_string());
    }
    if let Some(streams) = options.max_streams {
        command = command.arg("--max-streams").arg(streams.to_string());
    }
    command
        .env("RUST_LOG", "info")
        .spawn_logging_to(&files.join("apiserver.log"))
}

impl From<Recorded> for SeenRequest {
    fn from(recorded: Recorded) -> Self {
        let user = recorded.user.unwrap_or_default();
        Self {
            method: recorded.method,
            uri: recorded.uri,
            user: user.username,
            uid: user.uid,
            groups: user.groups,
            extra: user.extra,
            impersonator: recorded.impersonator.map(|user| user.username),
            from: Some(recorded.peer.ip()),
            code: recorded.code,
            headers: Some(recorded.headers),
            connection: Some(recorded.connection),
        }
    }
}
