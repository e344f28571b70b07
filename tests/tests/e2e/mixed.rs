//! Requests of every kind that a client has for the API server, sent by curl from a pod, many at a time.

use std::{fmt::Write as _, fs};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use understudy_tests::node::{Node, Pod, binaries};

use crate::world::{CA, World};

pub(crate) const CM: &str = "/api/v1/namespaces/prod/configmaps";
pub(crate) const WIDGETS: &str = "/apis/example.org/v1/namespaces/prod/widgets";

/// A request, as curl is to send it.
#[derive(Debug, Clone)]
pub(crate) struct Asks {
    method: &'static str,
    path: String,
    /// With its content type.
    body: Option<(&'static str, Value)>,
    headers: &'static [&'static str],
}

impl Asks {
    pub(crate) fn new(method: &'static str, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            body: None,
            headers: &[],
        }
    }

    fn json(method: &'static str, path: impl Into<String>, body: Value) -> Self {
        Self {
            body: Some(("application/json", body)),
            ..Self::new(method, path)
        }
    }
}

/// Has curl ask all of it from the pod, many at a time; each has to be answered.
pub(crate) async fn ask(node: &Node, pod: &Pod, phase: &str, requests: &[Asks]) -> Result<()> {
    let mut config = String::from("parallel\nparallel-max = 24\nno-progress-meter\n");
    for (index, request) in requests.iter().enumerate() {
        if index > 0 {
            config.push_str("next\n");
        }
        writeln!(config, "url = \"https://kubernetes.default.svc{}\"", request.path)?;
        if request.method == "HEAD" {
            config.push_str("head\n");
        } else {
            writeln!(config, "request = \"{}\"", request.method)?;
        }
        writeln!(
            config,
            "cacert = \"{CA}\"\noutput = \"/dev/null\"\nwrite-out = \"%{{http_code}} %{{method}} %{{url}}\\n\""
        )?;
        writeln!(config, "max-time = 60\nuser-agent = \"mixed/{phase}\"")?;
        for header in request.headers {
            writeln!(config, "header = \"{header}\"")?;
        }
        if let Some((kind, body)) = &request.body {
            let body = body.to_string().replace('\\', "\\\\").replace('"', "\\\"");
            writeln!(config, "header = \"Content-Type: {kind}\"\ndata = \"{body}\"")?;
        }
        // The upgrade is HTTP/1.1's, and what isn't answered with one is all the same to the audit.
        if !request.headers.is_empty() {
            config.push_str("http1.1\n");
        }
    }
    let file = node.directory().join(format!("mixed-{phase}.curl"));
    fs::write(&file, config)?;
    let curl = binaries::on_path("curl").context("curl is not on PATH: apt-get install curl")?;
    let output = pod.command(curl).arg("--config").arg(&file).output().await?;
    let answered = output.stdout.lines().filter(|line| !line.starts_with("000 ")).count();
    ensure!(
        answered == requests.len(),
        "{phase}: {answered} of {} were answered: {}",
        requests.len(),
        output.text()
    );
    Ok(())
}

/// What is there before anything is changed, by name.
fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}-{n}")).collect()
}

pub(crate) fn creations(maps: usize, widgets: usize) -> Vec<Asks> {
    let object = |kind: &str, version: &str, name: &str| json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": "prod"}});
    let maps = names("cm", maps).into_iter();
    let maps = maps.map(|name| Asks::json("POST", CM, object("ConfigMap", "v1", &name)));
    let widgets = names("w", widgets).into_iter();
    let widgets = widgets.map(|name| Asks::json("POST", WIDGETS, object("Widget", "example.org/v1", &name)));
    maps.chain(widgets).collect()
}

/// Reads, changes and failures, of every kind that Kubernetes tells apart.
pub(crate) fn middle(maps: usize, widgets: usize, each: usize) -> Vec<Asks> {
    let mut all: Vec<Asks> = Vec::new();
    let patch = json!({"data": {"a": "b"}});
    for name in names("cm", maps) {
        all.push(Asks::new("GET", format!("{CM}/{name}")));
        all.push(Asks {
            body: Some(("application/merge-patch+json", patch.clone())),
            ..Asks::new("PATCH", format!("{CM}/{name}"))
        });
    }
    for name in names("w", widgets) {
        all.push(Asks::new("GET", format!("{WIDGETS}/{name}")));
    }
    let settings =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings", "namespace": "prod"}});
    for n in 0..each {
        all.push(Asks::new("GET", "/api/v1/namespaces/prod/pods?limit=1"));
        all.push(Asks::new("GET", "/api/v1/pods"));
        all.push(Asks::new("GET", format!("{CM}?fieldSelector=metadata.name%3Dcm-{n}")));
        all.push(Asks::new("GET", "/version"));
        all.push(Asks::new("GET", "/healthz"));
        all.push(Asks::new("GET", "/apis/apps/v1"));
        all.push(Asks::new("GET", format!("{CM}/missing-{n}")));
        all.push(Asks::new("HEAD", format!("{CM}/settings")));
        all.push(Asks::json(
            "POST",
            CM,
            json!({"metadata": {"name": "settings", "namespace": "prod"}}),
        ));
        all.push(Asks::json("PUT", format!("{CM}/settings"), settings.clone()));
        all.push(Asks::new("GET", "/api/v1/namespaces"));
        all.push(Asks::new("GET", "/api/v1/namespaces/prod"));
    }
    for _ in 0..each / 4 {
        all.push(Asks::new("GET", format!("{CM}?watch=true&timeoutSeconds=1")));
        all.push(Asks::new(
            "GET",
            "/api/v1/watch/namespaces/prod/configmaps?timeoutSeconds=1",
        ));
        all.push(Asks {
            headers: &[
                "Connection: Upgrade",
                "Upgrade: websocket",
                "Sec-WebSocket-Version: 13",
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
                "Sec-WebSocket-Protocol: v5.channel.k8s.io",
            ],
            ..Asks::new("GET", "/api/v1/namespaces/prod/pods/missing/exec?command=sh&stdin=1")
        });
    }
    all
}

const COMMANDS: &[&str] = &[
    "Connection: Upgrade",
    "Upgrade: SPDY/3.1",
    "X-Stream-Protocol-Version: v4.channel.k8s.io",
];
const PORTS: &[&str] = &[
    "Connection: Upgrade",
    "Upgrade: SPDY/3.1",
    "X-Stream-Protocol-Version: portforward.k8s.io",
];

/// What goes on to a kubelet: streams into a pod, and its log.
pub(crate) fn into_pod(pod: &str, each: usize) -> Vec<Asks> {
    let of = |what: &str| format!("/api/v1/namespaces/prod/pods/{pod}/{what}");
    let stream = |what: &str, headers| Asks {
        headers,
        ..Asks::new("POST", of(what))
    };
    let all = (0..each).flat_map(|_| {
        [
            stream("exec?command=sh&container=main&stdin=true", COMMANDS),
            stream("attach?container=main&stdin=true", COMMANDS),
            stream("portforward", PORTS),
            Asks::new("GET", of("log?container=main")),
        ]
    });
    all.collect()
}

pub(crate) fn removals(maps: usize, widgets: usize) -> Vec<Asks> {
    let maps = names("cm", maps).into_iter();
    let maps = maps.map(|name| Asks::new("DELETE", format!("{CM}/{name}")));
    let widgets = names("w", widgets).into_iter();
    let widgets = widgets.map(|name| Asks::new("DELETE", format!("{WIDGETS}/{name}")));
    let last = Asks::new("DELETE", format!("{CM}?labelSelector=nobody%3Dhas"));
    maps.chain(widgets).chain([last]).collect()
}

pub(crate) async fn ask_all(world: &World, phases: [Vec<Asks>; 3]) -> Result<usize> {
    let mut sent = 0;
    for (name, requests) in ["create", "middle", "remove"].into_iter().zip(phases) {
        ask(&world.node, &world.pod, name, &requests).await?;
        sent += requests.len();
    }
    Ok(sent)
}
