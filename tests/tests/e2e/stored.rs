//! Recordings brought to a store: by S3's API, with signatures checked by a store of the test's own, and by PUT. Whatever
//! happens to the store or to the agent, what was recorded gets there, byte for byte, and is on the node until then.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use understudy_cases::{Area, seen};
use understudy_tests::node::{
    Agent, AgentOptions, ApiServer, Node, PodSpec, Running, Session, TestServerOptions, binaries, eventually,
};

use crate::world::World;

const STORE: &str = include_str!("objects.py");
const PORT: u16 = 9443;
const EXEC: &str = "exec -n prod web-0 -- echo alive";

/// The store's files, and the agent's that tell of it.
struct Store {
    node: Node,
    directory: PathBuf,
}

impl Store {
    fn new(node: &Node) -> Result<Self> {
        let directory = node.directory().join("store");
        fs::create_dir_all(&directory)?;
        node.cluster_ca().api_server_identity()?.write(&directory)?;
        fs::write(directory.join("objects.py"), STORE)?;
        fs::write(directory.join("token"), "dav-token-7c1e\n")?;
        let store = Self {
            node: node.clone(),
            directory,
        };
        store.takes("FIRSTKEY", "first-secret-5f2a")?;
        store.agent_has("FIRSTKEY", "first-secret-5f2a")?;
        Ok(store)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    async fn start(&self) -> Result<Running> {
        let mut running = self
            .node
            .command(binaries::python()?)?
            .arg(self.file("objects.py"))
            .arg(PORT.to_string())
            .args([self.file("tls.crt"), self.file("tls.key"), self.directory.clone()])
            .spawn()?;
        running.stdout_until(|text| text.contains("ready")).await?;
        Ok(running)
    }

    /// The one access key that it takes from now on.
    fn takes(&self, id: &str, secret: &str) -> Result<()> {
        Ok(fs::write(self.file("keys"), format!("{id} {secret}\n"))?)
    }

    /// What the agent shows, as its Secret is mounted.
    fn agent_has(&self, id: &str, secret: &str) -> Result<()> {
        let text = format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
        fs::write(self.file("credentials.new"), text)?;
        Ok(fs::rename(self.file("credentials.new"), self.file("credentials"))?)
    }

    fn told(&self, name: &str, what: Option<&str>) -> Result<()> {
        match what {
            Some(what) => Ok(fs::write(self.file(name), what)?),
            None => Ok(fs::remove_file(self.file(name))?),
        }
    }

    fn recordings(&self) -> PathBuf {
        self.node.directory().join("recordings")
    }

    fn options(&self) -> AgentOptions {
        AgentOptions::default()
            .arg(&format!("--recordings={}", self.recordings().display()))
            .arg("--recording-upload=s3://audit/cluster-a")
            .arg(&format!("--recording-upload-endpoint=https://127.0.0.1:{PORT}"))
            .arg("--recording-upload-region=eu-test-1")
            .arg(&format!(
                "--recording-upload-ca={}",
                self.node.cluster_ca_file().display()
            ))
            .arg(&format!(
                "--recording-upload-credentials={}",
                self.file("credentials").display()
            ))
    }

    async fn world(&self, options: AgentOptions) -> Result<World> {
        let node = self.node.clone();
        let api = ApiServer::start_test_program(&node, &TestServerOptions::default()).await?;
        let pod = node.pod(PodSpec::named("shell"))?;
        let untagged = node.pod(PodSpec::named("untagged"))?;
        let session = Session::named("support", "alice")
            .acting_as(&node.accounts().viewer)
            .field("recording", serde_json::json!("required"))
            .for_pod(&pod);
        node.sessions().write(&session)?;
        let agent = Agent::start(&node, options).await?;
        Ok(World {
            agent,
            api,
            pod,
            untagged,
            session,
            node,
        })
    }

    /// The recordings on the node, in their order.
    fn kept(&self) -> Result<Vec<PathBuf>> {
        casts(&self.recordings())
    }

    /// What it has.
    fn objects(&self) -> Result<Vec<PathBuf>> {
        casts(&self.file("objects"))
    }

    /// So many objects, when they are there.
    async fn has(&self, count: usize) -> Result<Vec<PathBuf>> {
        eventually("the store has them", async || {
            let objects = self.objects()?;
            ensure!(objects.len() <= count, "{objects:?}");
            Ok((objects.len() == count).then_some(objects))
        })
        .await
    }

    /// What it said to each request that came.
    fn answered(&self) -> Result<Vec<(String, String, u16)>> {
        let text = fs::read_to_string(self.file("answered")).unwrap_or_default();
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }
}

/// No secret that is anywhere here is in the agent's log.
fn assert_no_secret_in(log: &str) {
    for secret in ["first-secret", "second-secret", "dav-token", "Signature="] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

/// All below.
fn casts(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry?.path();
        if path.is_dir() {
            found.append(&mut casts(&path)?);
        } else if path.extension() == Some("cast".as_ref()) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn same(one: &Path, other: &Path) -> Result<()> {
    ensure!(
        fs::read(one)? == fs::read(other)?,
        "{} and {} differ",
        one.display(),
        other.display()
    );
    Ok(())
}

#[tokio::test]
async fn what_is_recorded_is_stored_and_proven_there() -> Result<()> {
    let node = Node::new()?;
    let store = Store::new(&node)?;
    let _running = store.start().await?;
    let world = store.world(store.options()).await?;
    world.pod.kubectl(EXEC).await?.success()?;
    let object = store.has(1).await?.remove(0);
    let kept = store.kept()?;
    assert_eq!(kept.len(), 1, "it stays, unless told otherwise");
    same(&object, &kept[0])?;
    let name = kept[0].file_stem().and_then(|name| name.to_str()).context("a name")?;
    let below = object.strip_prefix(store.file("objects"))?.display().to_string();
    let node_name = understudy_tests::node::NODE_NAME;
    assert_eq!(below, format!("audit/cluster-a/{}/{name}_{node_name}.cast", &name[..8]));
    let verify = node.command(binaries::understudy()?)?.args(["recordings", "verify"]);
    let said = verify.arg(&object).stdout().await?;
    assert!(said.contains(": whole, closed, blake3 "), "{said}");
    // What is marked stands beside, and is no recording itself.
    let listed = node
        .command(binaries::understudy()?)?
        .args(["recordings", "ls", "-o", "name"]);
    let listed = listed.arg(store.recordings()).stdout().await?;
    assert_eq!(listed.trim_end(), kept[0].display().to_string());
    let bytes = fs::metadata(&object)?.len();
    eventually("it is counted", async || {
        let metrics = world.agent.metrics().await?;
        let stored = metrics.sum("understudy_recording_uploads_total", &[("outcome", "stored")]);
        let counted = metrics.sum("understudy_recording_upload_bytes_total", &[]);
        let waiting = metrics.sum("understudy_recordings_waiting", &[]);
        #[expect(clippy::cast_precision_loss, reason = "a recording is short")]
        let all = (stored - 1.0).abs() < 0.5 && (counted - bytes as f64).abs() < 0.5 && waiting < 0.5;
        Ok(all.then_some(()))
    })
    .await?;
    // Started again, it has nothing to bring.
    let requests = store.answered()?.len();
    let mut agent = world.agent.restart().await?;
    agent.terminate()?;
    agent.ended(Duration::from_secs(40)).await?;
    assert_eq!(store.answered()?.len(), requests);
    assert_no_secret_in(&agent.log());
    Ok(())
}

#[tokio::test]
async fn a_store_that_is_gone_gets_it_when_it_is_back_and_only_then_is_it_removed() -> Result<()> {
    let node = Node::new()?;
    let store = Store::new(&node)?;
    let world = store.world(store.options().arg("--recording-upload-remove")).await?;
    world.pod.kubectl(EXEC).await?.success()?;
    let failed = async || {
        let metrics = world.agent.metrics().await?;
        Ok::<_, anyhow::Error>(metrics.sum("understudy_recording_uploads_total", &[("outcome", "failed")]))
    };
    eventually("an attempt that failed", async || {
        Ok((failed().await? > 0.5).then_some(()))
    })
    .await?;
    let kept = store.kept()?;
    assert_eq!(kept.len(), 1);
    let whole = fs::read(&kept[0])?;
    store.told("fault", Some("503"))?;
    let _running = store.start().await?;
    eventually("it was refused", async || {
        Ok(store.answered()?.iter().any(|(_, _, code)| *code == 503).then_some(()))
    })
    .await?;
    assert_eq!((store.kept()?.len(), store.objects()?.len()), (1, 0));
    store.told("fault", None)?;
    let object = store.has(1).await?.remove(0);
    assert_eq!(fs::read(&object)?, whole);
    eventually("it is removed", async || Ok(store.kept()?.is_empty().then_some(()))).await?;
    let log = world.agent.log();
    assert!(log.contains("isn't brought to its store"), "{log}");
    assert_no_secret_in(&log);
    seen(
        Area::Faults,
        "The recordings' store gone, or answering 503, recording: required",
        "streams go on being recorded on the node; each recording is brought once the store is back, and removed only then",
    );
    Ok(())
}

#[tokio::test]
async fn what_a_killed_agent_leaves_the_next_brings() -> Result<()> {
    let node = Node::new()?;
    let store = Store::new(&node)?;
    let _running = store.start().await?;
    let mut world = store.world(store.options()).await?;
    let words = ["exec", "-i", "-n", "prod", "web-0", "--", "cat"];
    let mut exec = world.pod.kubectl_command(words)?.spawn()?;
    exec.write(b"alive\n").await?;
    exec.stdout_until(|text| text.contains("alive")).await?;
    eventually("it is written down", async || {
        let kept = store.kept()?;
        let text = kept.first().map(fs::read_to_string).transpose()?;
        Ok(text.is_some_and(|text| text.contains("alive")).then_some(()))
    })
    .await?;
    world.agent.kill9().await?;
    assert!(store.objects()?.is_empty(), "it wasn't at its end");
    world.agent = world.agent.restart().await?;
    let object = store.has(1).await?.remove(0);
    same(&object, &store.kept()?[0])?;
    let verify = node.command(binaries::understudy()?)?.args(["recordings", "verify"]);
    let said = verify.arg(&object).output().await?;
    assert!(
        said.stdout.contains("as it was written, but without its end"),
        "{said:?}"
    );
    seen(
        Area::Faults,
        "The agent killed while it records, with a store",
        "the next agent brings what was written, which is proven up to its last write",
    );
    Ok(())
}

#[tokio::test]
async fn new_credentials_hold_while_the_agent_runs() -> Result<()> {
    let node = Node::new()?;
    let store = Store::new(&node)?;
    let _running = store.start().await?;
    let world = store.world(store.options()).await?;
    world.pod.kubectl(EXEC).await?.success()?;
    store.has(1).await?;
    store.takes("SECONDKEY", "second-secret-91bd")?;
    world.pod.kubectl(EXEC).await?.success()?;
    eventually("it was refused", async || {
        Ok(store.answered()?.iter().any(|(_, _, code)| *code == 403).then_some(()))
    })
    .await?;
    assert_eq!(store.objects()?.len(), 1);
    store.agent_has("SECONDKEY", "second-secret-91bd")?;
    store.has(2).await?;
    let log = world.agent.log();
    assert!(log.contains("InvalidAccessKeyId"), "{log}");
    assert_no_secret_in(&log);
    Ok(())
}

#[tokio::test]
async fn a_long_recording_is_stored_in_parts() -> Result<()> {
    let node = Node::new()?;
    let store = Store::new(&node)?;
    let _running = store.start().await?;
    let world = store.world(store.options()).await?;
    let typed = "0123456789abcdef0123456789abcde\n".repeat(640 * 1024);
    let words = ["exec", "-i", "-n", "prod", "web-0", "--", "cat"];
    let cat = world.pod.kubectl_command(words)?.stdin(typed.clone());
    let shown = cat.limit(Duration::from_mins(1)).stdout().await?;
    assert!(shown == typed, "{} bytes of {}", shown.len(), typed.len());
    let object = store.has(1).await?.remove(0);
    same(&object, &store.kept()?[0])?;
    let parts = store.answered()?;
    let parts = parts.iter().filter(|(_, path, _)| path.contains("partNumber=")).count();
    assert!(parts > 2, "{parts}");
    Ok(())
}

#[tokio::test]
async fn at_a_handover_what_the_old_agent_still_writes_waits_for_its_end() -> Result<()> {
    let node = Node::new()?;
    let store = Store::new(&node)?;
    let _running = store.start().await?;
    let options = store
        .options()
        .args(["--recording-upload-remove", "--drain-deadline=30"]);
    let mut world = store.world(options.clone()).await?;
    let words = ["exec", "-i", "-n", "prod", "web-0", "--", "cat"];
    let mut exec = world.pod.kubectl_command(words)?.spawn()?;
    exec.write(b"before\n").await?;
    exec.stdout_until(|text| text.contains("before")).await?;
    let _next = Agent::start(&node, options.beside(1)).await?;
    world.agent.terminate()?;
    world.pod.kubectl(EXEC).await?.success()?;
    store.has(1).await?;
    // Older than what is taken for one that nobody writes, and longer than until the next agent looks around.
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(store.kept()?.len(), 1, "it is still written");
    exec.write(b"after\n").await?;
    exec.stdout_until(|text| text.contains("after")).await?;
    exec.kill().await?;
    world.agent.ended(Duration::from_secs(40)).await?;
    let objects = store.has(2).await?;
    let texts: Vec<_> = objects.iter().map(fs::read_to_string).collect::<Result<_, _>>()?;
    let both = texts.iter().find(|text| text.contains("before")).context("the first")?;
    assert!(both.contains("after") && both.contains(r#""z""#), "{both}");
    eventually("it is removed", async || Ok(store.kept()?.is_empty().then_some(()))).await
}

#[tokio::test]
async fn a_server_that_takes_put_gets_it_as_well() -> Result<()> {
    let node = Node::new()?;
    let store = Store::new(&node)?;
    let _running = store.start().await?;
    fs::write(store.file("dav-credentials"), "token = dav-token-7c1e\n")?;
    let options = AgentOptions::default()
        .arg(&format!("--recordings={}", store.recordings().display()))
        .arg(&format!("--recording-upload=https://127.0.0.1:{PORT}/dav/recordings"))
        .arg(&format!("--recording-upload-ca={}", node.cluster_ca_file().display()))
        .arg(&format!(
            "--recording-upload-credentials={}",
            store.file("dav-credentials").display()
        ));
    let world = store.world(options).await?;
    world.pod.kubectl(EXEC).await?.success()?;
    let object = store.has(1).await?.remove(0);
    same(&object, &store.kept()?[0])?;
    assert_no_secret_in(&world.agent.log());
    Ok(())
}

#[tokio::test]
async fn a_store_that_proves_to_be_another_gets_nothing() -> Result<()> {
    let node = Node::new()?;
    let store = Store::new(&node)?;
    let other = understudy_tests::node::CertificateAuthority::new("another")?;
    other.api_server_identity()?.write(&store.directory)?;
    let _running = store.start().await?;
    let world = store.world(store.options()).await?;
    world.pod.kubectl(EXEC).await?.success()?;
    eventually("it is refused", async || {
        Ok(world.agent.log().contains("check --recording-upload-ca").then_some(()))
    })
    .await?;
    assert!(store.answered()?.is_empty() && store.kept()?.len() == 1);
    Ok(())
}
