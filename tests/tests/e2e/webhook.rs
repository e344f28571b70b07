//! The audit webhook with the agent killed, the webhook gone or slow, its queue's disk full: what was promised holds.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result};
use rstest::rstest;
use serde_json::Value;
use understudy_cases::{Area, seen};
use understudy_tests::node::{
    AgentOptions, ApiServer, Node, Patience, PodSpec, Running, SmallDisk, TestServerOptions, binaries, eventually,
};

use crate::world::{World, ask_many, curl};

/// As many events are kept in memory.
const BACKLOG: usize = 4096;
const PODS: &str = "/api/v1/namespaces/prod/pods?limit=1";

/// Takes lists of events over TLS and appends them to a file, one a line; as slowly as the file `delay` says.
const SINK: &str = r#"
import http.server, json, os, ssl, sys, time
address, certificate, key, out = sys.argv[1:]
class Sink(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        assert self.path == "/events" and self.headers["authorization"] == "Bearer sink-token"
        events = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert events["kind"] == "EventList" and events["apiVersion"] == "audit.k8s.io/v1"
        try:
            with open(os.path.join(os.path.dirname(out), "delay")) as delay:
                time.sleep(float(delay.read()))
        except FileNotFoundError:
            pass
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

    /// Has it wait before it takes a list, or not.
    fn takes_after(&self, delay: Option<&str>) -> Result<()> {
        match delay {
            Some(seconds) => Ok(fs::write(self.file("delay"), seconds)?),
            None => Ok(fs::remove_file(self.file("delay"))?),
        }
    }

    /// The ids of what it has, each as it came first.
    fn ids(&self) -> Result<Vec<String>> {
        Ok(self.taken()?.ids)
    }

    fn taken(&self) -> Result<Taken> {
        let text = fs::read_to_string(self.file("events")).unwrap_or_default();
        let complete = text.rsplit_once('\n').map_or("", |(complete, _)| complete);
        let (mut taken, mut known) = (Taken::default(), BTreeSet::new());
        for line in complete.lines() {
            let event: Value = serde_json::from_str(line)?;
            let id = event["auditID"].as_str().context("an id")?.to_owned();
            if !known.insert(id.clone()) {
                continue;
            }
            match event["annotations"]["understudy.dev/lost"].as_str() {
                Some(lost) => taken.lost += lost.parse::<usize>()?,
                None => taken.ids.push(id),
            }
        }
        Ok(taken)
    }
}

/// What a webhook has, each event once.
#[derive(Debug, Default)]
struct Taken {
    ids: Vec<String>,
    /// How many it was told that it lacks.
    lost: usize,
}

impl Taken {
    /// Whether it has all that is in the log, and was told of what it lacks.
    fn is_all_of(&self, logged: &[String], lost: usize) -> bool {
        let ids: BTreeSet<&String> = self.ids.iter().collect();
        let in_log = logged.iter().filter(|id| ids.contains(id)).count();
        in_log == self.ids.len() && in_log + lost == logged.len() && self.lost == lost
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

fn quiet(sink: &Sink, policy: &str) -> AgentOptions {
    let options = sink.options().log_level("info");
    options.args(["--audit-failure", policy])
}

/// How many events the webhook's sink lost.
async fn lost(world: &World) -> Result<usize> {
    let metrics = world.agent.metrics().await?;
    let lost = metrics.sum("understudy_audit_events_dropped_total", &[("sink", "webhook")]);
    format!("{lost:.0}").parse().context("a count")
}

#[rstest]
#[case::block("block")]
#[case::drop("drop")]
#[tokio::test]
async fn a_webhook_slower_than_the_requests_has_them_wait_or_is_told_what_it_lacks(#[case] policy: &str) -> Result<()> {
    // More than the queue and the agent's memory hold together.
    const MANY: usize = 6400;
    let node = Node::new()?;
    let sink = Sink::new(&node)?;
    sink.takes_after(Some("15"))?;
    let _running = sink.start().await?;
    let api = ApiServer::start_test_program(&node, &TestServerOptions::default()).await?;
    let options = quiet(&sink, policy).args(["--audit-webhook-queue-size", "1"]);
    let world = World::around(node, api, PodSpec::named("shell"), options).await?;
    let (codes, told) = tokio::join!(ask_many(&world.pod, MANY), async {
        eventually("the queue and the memory are full", async || {
            let metrics = world.agent.metrics().await?;
            let backlog = metrics.sum("understudy_audit_backlog", &[("sink", "webhook")]);
            let is_full = backlog >= 4096.0 && (policy == "block" || lost(&world).await? > 0);
            Ok(is_full.then_some(()))
        })
        .await?;
        let readiness = world.agent.readiness().await?;
        sink.takes_after(None)?;
        anyhow::Ok(readiness)
    });
    let told = told?;
    assert!(told.contains("[-]audit-webhook failed"), "{told}");
    assert_eq!(codes?, BTreeMap::from([("200".to_owned(), MANY)]));
    assert!(
        world.agent.log().contains("the webhook's queue is full"),
        "with the cause"
    );
    let lost = lost(&world).await?;
    assert_eq!(lost > 0, policy == "drop", "{lost}");
    let logged = eventually("the log has them all", async || {
        Ok(Some(logged(&world)?).filter(|logged| logged.len() == MANY))
    })
    .await?;
    eventually("the webhook has them all, or knows what it lacks", async || {
        Ok(sink.taken()?.is_all_of(&logged, lost).then_some(()))
    })
    .await?;
    assert!(world.agent.readiness().await?.starts_with("ok"));
    let becomes = match policy {
        "block" => "wait for it, and none is lost",
        _ => "go on; the webhook is sent a gap in place of their events, the log has them",
    };
    seen(
        Area::Faults,
        format!("The audit webhook is slow, --audit-failure {policy}"),
        format!("its queue fills, then {BACKLOG} events are kept; /readyz says so; further requests {becomes}"),
    );
    Ok(())
}

#[rstest]
#[case::block("block")]
#[case::drop("drop")]
#[tokio::test]
async fn a_full_disk_for_the_webhooks_queue_is_told_and_emptied_by_the_webhook_alone(
    #[case] policy: &str,
) -> Result<()> {
    const STEP: usize = 16;
    let node = Node::new()?;
    let sink = Sink::new(&node)?;
    let _disk = SmallDisk::mount(sink.directory.join("queue"), 256 * 1024)?;
    let api = ApiServer::start_test_program(&node, &TestServerOptions::default()).await?;
    let options = quiet(&sink, policy).args(["--queue-timeout", "1"]);
    let world = World::around(node, api, PodSpec::named("shell"), options).await?;
    let mark = world.api.mark().await?;
    // On the disk and in memory.
    let mut asked = BACKLOG + STEP;
    let mut codes = ask_many(&world.pod, asked).await?;
    while lost(&world).await? == 0 {
        for (code, count) in ask_many(&world.pod, STEP).await? {
            *codes.entry(code).or_default() += count;
        }
        asked += STEP;
        assert!(asked < 2 * BACKLOG, "the disk isn't full");
    }
    let upstream = world.api.seen_since(mark).await?.len();
    let lost = lost(&world).await?;
    let refused = codes.get("503").copied().unwrap_or(0);
    assert_eq!(codes["200"], upstream, "what is refused does nothing");
    assert_eq!(upstream + refused, asked);
    assert_eq!(refused, if policy == "block" { lost } else { 0 });
    let readiness = world.agent.readiness().await?;
    assert!(readiness.contains("[-]audit-webhook failed"), "{readiness}");
    assert!(
        !readiness.contains("[-]audit failed"),
        "the log is written: {readiness}"
    );
    assert!(world.agent.log().contains("No space left on device"), "with the cause");

    // The disk stays as full as others leave it.
    let _running = sink.start().await?;
    let logged = logged(&world)?;
    assert_eq!(logged.len(), upstream);
    let (in_log, gap) = if policy == "block" { (0, lost) } else { (lost, lost) };
    Patience(Duration::from_secs(90))
        .until("the webhook has them all, or knows what it lacks", async || {
            let taken = sink.taken()?;
            Ok((taken.lost == gap && taken.ids.len() + in_log == logged.len()).then_some(()))
        })
        .await?;
    assert_eq!(curl(&world.pod, PODS, &[]).await?.code, 200);
    assert!(world.agent.readiness().await?.starts_with("ok"));
    let becomes = match policy {
        "block" => "are answered 503 `Status` ServiceUnavailable after --queue-timeout; nothing upstream",
        _ => "go on; their events are lost to the webhook, the log has them",
    };
    seen(
        Area::Faults,
        format!("Disk full for the audit webhook's queue, and the webhook gone, --audit-failure {policy}"),
        format!(
            "{BACKLOG} events are kept; further requests {becomes}; counted, /readyz says so; once the webhook is back it empties the queue, and is sent a gap"
        ),
    );
    Ok(())
}
