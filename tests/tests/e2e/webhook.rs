//! The audit webhook, with the agent killed and the webhook gone: what was promised holds.

use std::{fs, path::PathBuf};

use anyhow::Result;
use serde_json::Value;
use understudy_tests::node::{
    AgentOptions, ApiServer, Node, PodSpec, Running, TestServerOptions, binaries, eventually,
};

use crate::world::{World, curl};

const PODS: &str = "/api/v1/namespaces/prod/pods?limit=1";

/// Takes lists of events over TLS and appends them to a file, one a line.
const SINK: &str = r#"
import http.server, json, ssl, sys
address, certificate, key, out = sys.argv[1:]
class Sink(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        assert self.path == "/events" and self.headers["authorization"] == "Bearer sink-token"
        events = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert events["kind"] == "EventList" and events["apiVersion"] == "audit.k8s.io/v1"
        with open(out, "a") as file:
            for event in events["items"]:
                file.write(json.dumps(event) + "\n")
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(address)), Sink)
server.socket = context.wrap_socket(server.socket, server_side=True)
print("ready", flush=True)
server.serve_forever()
"#;

const PORT: u16 = 8443;

/// Where the sink's files are, and the agent's that tell of it.
struct Sink {
    node: Node,
    directory: PathBuf,
}

impl Sink {
    fn new(node: &Node) -> Result<Self> {
        let directory = node.directory().join("sink");
        fs::create_dir_all(&directory)?;
        node.cluster_ca().api_server_identity()?.write(&directory)?;
        fs::write(directory.join("sink.py"), SINK)?;
        fs::write(directory.join("token"), "sink-token\n")?;
        let ca = node.cluster_ca_file();
        let config = format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: sink\n  cluster:\n    server: https://127.0.0.1:{PORT}/events\n    \
             tls-server-name: kubernetes.default.svc\n    certificate-authority: {}\nusers:\n- name: agent\n  user: {{tokenFile: token}}\n\
             contexts:\n- name: it\n  context: {{cluster: sink, user: agent}}\ncurrent-context: it\n",
            ca.display()
        );
        fs::write(directory.join("webhook.yaml"), config)?;
        Ok(Self {
            node: node.clone(),
            directory,
        })
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    async fn start(&self) -> Result<Running> {
        let arguments = [
            self.file("sink.py"),
            PORT.to_string(),
            self.file("tls.crt"),
            self.file("tls.key"),
            self.file("events"),
        ];
        let mut running = self.node.command(binaries::python()?)?.args(arguments).spawn()?;
        running.stdout_until(|text| text.contains("ready")).await?;
        Ok(running)
    }

    fn options(&self) -> AgentOptions {
        AgentOptions::default()
            .arg(&format!("--audit-webhook-config={}", self.file("webhook.yaml")))
            .arg(&format!("--audit-webhook-queue={}", self.file("queue")))
    }

    /// The ids of what it has, each as it came first.
    fn ids(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string(self.file("events")).unwrap_or_default();
        let complete = text.rsplit_once('\n').map_or("", |(complete, _)| complete);
        let mut ids: Vec<String> = Vec::new();
        for line in complete.lines() {
            let event: Value = serde_json::from_str(line)?;
            let id = event["auditID"].as_str().unwrap_or_default().to_owned();
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        Ok(ids)
    }
}

async fn ask(world: &World, times: usize) -> Result<()> {
    for _ in 0..times {
        assert_eq!(curl(&world.pod, PODS, &[]).await?.code, 200);
    }
    Ok(())
}

fn logged(world: &World) -> Result<Vec<String>> {
    Ok(world.agent.audit()?.into_iter().map(|event| event.audit_id).collect())
}

#[tokio::test]
async fn events_outlive_the_agent_and_an_absence_of_the_webhook() -> Result<()> {
    let node = Node::new()?;
    let sink = Sink::new(&node)?;
    let running = sink.start().await?;
    let api = ApiServer::start_test_program(&node, &TestServerOptions::default()).await?;
    let mut world = World::around(node, api, PodSpec::named("shell"), sink.options()).await?;
    ask(&world, 3).await?;
    eventually("the webhook has the first", async || {
        Ok((sink.ids()?.len() == 3).then_some(()))
    })
    .await?;

    running.kill().await?;
    ask(&world, 3).await?;
    eventually("the agent tells that the webhook is gone", async || {
        let told = world
            .agent
            .log()
            .contains("the audit webhook takes no events; they wait in its queue");
        let metrics = world.agent.metrics().await?;
        let waiting = metrics.sum("understudy_audit_webhook_queue_bytes", &[]);
        Ok((told && waiting > 0.0 && logged(&world)?.len() == 6).then_some(()))
    })
    .await?;
    assert!(world.agent.readiness().await?.starts_with("ok"), "the queue has room");
    // Killed with events that nobody has taken.
    world.agent = world.agent.restart().await?;
    ask(&world, 2).await?;
    eventually("the log has them all", async || {
        Ok((logged(&world)?.len() == 8).then_some(()))
    })
    .await?;
    assert_eq!(sink.ids()?.len(), 3, "nobody was there to take them");

    let _running = sink.start().await?;
    let wanted = logged(&world)?;
    eventually("the webhook has them all, in order", async || {
        Ok((sink.ids()? == wanted).then_some(()))
    })
    .await?;
    Ok(())
}
