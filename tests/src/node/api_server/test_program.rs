//! The test program as the box's API server.

use std::fs;

use anyhow::Result;
use tokio::process::Child;

use super::{Mark, SeenRequest, files, scene, write_credentials};
use crate::{
    apiserver::{Control, Recorded},
    node::{Node, binaries, network::API_SERVER},
};

/// What the test program is asked to be.
#[derive(Debug, Clone, Default)]
pub struct TestServerOptions {
    max_streams: Option<u32>,
}

impl TestServerOptions {
    /// How many concurrent streams it allows on an HTTP/2 connection.
    #[must_use]
    pub fn max_streams(mut self, streams: u32) -> Self {
        self.max_streams = Some(streams);
        self
    }
}

#[derive(Debug)]
pub(super) struct TestServer {
    control: Control,
    _process: Child,
}

impl TestServer {
    pub(super) fn launch(node: &Node, options: &TestServerOptions) -> Result<Self> {
        let files = files(node);
        write_credentials(node)?;
        fs::write(files.join("rules.yaml"), scene::rules())?;
        let control = files.join("control");
        let mut command = node
            .control_plane_command(binaries::apiserver()?)?
            .arg("--control")
            .arg(&control);
        for (flag, name) in [
            ("--tls-cert", "tls.crt"),
            ("--tls-key", "tls.key"),
            ("--token-auth-file", "tokens.csv"),
            ("--rules", "rules.yaml"),
        ] {
            command = command.arg(flag).arg(files.join(name));
        }
        for address in API_SERVER {
            command = command.arg("--listen").arg(address.to_string());
        }
        if let Some(streams) = options.max_streams {
            command = command.arg("--max-streams").arg(streams.to_string());
        }
        let process = command
            .env("RUST_LOG", "info")
            .spawn_logging_to(&files.join("apiserver.log"))?;
        Ok(Self {
            control: Control::new(control),
            _process: process,
        })
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

impl From<Recorded> for SeenRequest {
    fn from(recorded: Recorded) -> Self {
        let user = recorded.user.unwrap_or_default();
        Self {
            method: recorded.method,
            uri: recorded.uri,
            user: user.username,
            groups: user.groups,
            impersonator: recorded.impersonator.map(|user| user.username),
            from: Some(recorded.peer.ip()),
            code: recorded.code,
            headers: Some(recorded.headers),
            connection: Some(recorded.connection),
        }
    }
}
