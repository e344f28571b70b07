//! What the agent itself runs out of: disk, file descriptors, memory. It says so, sheds what is too much, keeps its
//! probes, and is as before when there is enough again.

use std::time::Duration;

use anyhow::{Context as _, Result};
use rstest::rstest;
use understudy_cases::{Area, seen};
use understudy_tests::node::{
    AgentOptions, ApiServer, MemoryLimit, Node, Pod, PodSpec, Running, Session, SmallDisk, TestServerOptions, binaries,
    eventually,
};

use crate::world::{World, ask_many, curl, curl_raw};

const PODS: &str = "/api/v1/namespaces/prod/pods";
const LARGE_LIST: &str = "/api/v1/namespaces/prod/configmaps?understudySize=1Gi";
/// As many events as the agent keeps.
const BACKLOG: usize = 4096;
const MIB: u64 = 1024 * 1024;

/// Opens connections to the API server, says how many are open still, and holds them until its input ends. With `tls`
/// each asks for a path and never reads the answer.
const HOLD: &str = r#"
import select, socket, ssl, sys, time
many, path = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None
trust = ssl.create_default_context(cafile="/var/run/secrets/kubernetes.io/serviceaccount/ca.crt")
held, failed = [], 0
for number in range(many):
    try:
        plain = socket.create_connection(("10.96.0.1", 443), timeout=10)
        if path:
            secure = trust.wrap_socket(plain, server_hostname="kubernetes.default.svc")
            secure.sendall(f"GET {path} HTTP/1.1\r\nHost: kubernetes.default.svc\r\n\r\n".encode())
            plain = secure
        held.append(plain)
    except OSError:
        failed += 1
count = still = 0
for _ in range(0 if path else 100):
    before, count = count, len(select.select(held, [], [], 0)[0])
    still = still + 1 if count and count == before else 0
    if still == 5:
        break
    time.sleep(0.2)
print(f"held {len(held) - count} closed {count + failed}", flush=True)
sys.stdin.read()
"#;

/// Dials again and again, and drops each connection in another way.
const DROP: &str = r#"
import socket, struct, sys
hello = bytes.fromhex("16030100c8010000c40303") + bytes(40)
for number in range(int(sys.argv[1])):
    dialled = socket.create_connection(("10.96.0.1", 443), timeout=10)
    kind = number % 4
    if kind & 1:
        dialled.sendall(hello)
    if kind & 2:
        dialled.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    dialled.close()
print("done")
"#;

fn quiet() -> AgentOptions {
    AgentOptions::default().log_level("info")
}

async fn world(agent: AgentOptions) -> Result<World> {
    World::with(&TestServerOptions::default(), agent).await
}

/// Another pod, in a session of its own.
fn neighbour(node: &Node) -> Result<Pod> {
    let pod = node.pod(PodSpec::named("neighbour"))?;
    let session = Session::named("support", "bob")
        .acting_as(&node.accounts().viewer)
        .for_pod(&pod);
    node.sessions().write(&session)?;
    Ok(pod)
}

fn python(pod: &Pod, program: &str, arguments: &[&str]) -> Result<Running> {
    let python = binaries::python()?;
    pod.command(python).args(["-c", program]).args(arguments).spawn()
}

#[rstest]
#[case::block("block")]
#[case::drop("drop")]
#[tokio::test]
async fn a_full_disk_for_the_audit_log_is_never_silent(#[case] policy: &str) -> Result<()> {
    // The page that the log's end is in takes a few yet when the disk is full.
    const MORE: usize = 16;
    let node = Node::new()?;
    let disk = SmallDisk::mount(node.directory().join("audit"), 8 * MIB)?;
    let options = quiet()
        .audit_log(disk.path().join("audit.jsonl"))
        .arg("--audit-failure")
        .arg(policy)
        .args(["--queue-timeout", "1"]);
    let api = ApiServer::start_test_program(&node, &TestServerOptions::default()).await?;
    let world = World::around(node, api, PodSpec::named("shell"), options).await?;
    assert_eq!(curl(&world.pod, PODS, &[]).await?.code, 200);
    eventually("its event is written", async || {
        Ok((world.agent.audit()?.len() == 1).then_some(()))
    })
    .await?;
    disk.fill()?;
    let mark = world.api.mark().await?;
    let codes = ask_many(&world.pod, BACKLOG + MORE).await?;
    let upstream = world.api.seen_since(mark).await?.len();
    let of = |code: &str| codes.get(code).copied().unwrap_or(0);
    assert_eq!(of("200"), upstream);
    let next = curl(&world.pod, PODS, &[]).await?;
    let metrics = world.agent.metrics().await?;
    let dropped = metrics.sum("understudy_audit_events_dropped_total", &[]);
    // All beyond the backlog, less what the disk's last room still takes: a line or two, or a batch.
    let lost = (0..=MORE + 1).find(|lost| (f64::from(u32::try_from(*lost).unwrap_or(0)) - dropped).abs() < 0.5);
    let lost = lost.with_context(|| format!("{dropped} lost"))?;
    assert!(lost > 1, "{codes:?}");
    let expected = if policy == "block" {
        (BACKLOG + MORE + 1 - lost, lost - 1)
    } else {
        (BACKLOG + MORE, 0)
    };
    assert_eq!((of("200"), of("503")), expected, "{codes:?}");
    let readiness = world.agent.readiness().await?;
    assert!(readiness.contains("[-]audit failed"), "{readiness}");
    let log = world.agent.log();
    let told = log
        .lines()
        .filter(|line| line.contains("audit events are lost"))
        .count();
    assert_eq!(told, 1, "once, and not for each");
    assert!(log.contains("the audit log cannot be written"), "with the cause");

    disk.relieve()?;
    eventually("the gap is written down", async || {
        Ok((world.agent.audit_gaps()? == [lost as u64]).then_some(()))
    })
    .await?;
    assert_eq!(curl(&world.pod, PODS, &[]).await?.code, 200);
    eventually("all events are written", async || {
        Ok((world.agent.audit()?.len() == BACKLOG + MORE + 3 - lost).then_some(()))
    })
    .await?;
    assert!(!world.agent.readiness().await?.contains("[-]audit"));
    let becomes = if policy == "block" {
        next.assert_status(503, "ServiceUnavailable");
        format!(
            "{} `Status` ServiceUnavailable after --queue-timeout; nothing upstream",
            next.code
        )
    } else {
        format!("{}; its event is lost", next.code)
    };
    seen(
        Area::Faults,
        format!("Disk full for the audit log, --audit-failure {policy}"),
        format!(
            "{BACKLOG} events are kept; a further request: {becomes}; counted, logged once, /readyz says so; written down as a gap when there is room"
        ),
    );
    Ok(())
}

#[tokio::test]
async fn out_of_file_descriptors_the_agent_sheds_load_and_keeps_its_probes() -> Result<()> {
    let world = world(quiet().open_files(192)).await?;
    let neighbour = neighbour(&world.node)?;
    eventually("the neighbour has its session", async || {
        Ok(curl_raw(&neighbour, PODS, &[]).await?.succeeded().then_some(()))
    })
    .await?;
    let watched = ["get", "configmaps", "-n", "prod", "--watch", "-o", "name"];
    let mut watch = neighbour.kubectl_command(watched)?.spawn()?;
    watch.stdout_until(|text| text.contains("configmap/settings")).await?;

    let mut holder = python(&world.pod, HOLD, &["400"])?;
    holder.stdout_until(|text| text.contains("held ")).await?;
    let said = holder.stdout();
    let mut numbers = said.split_whitespace().filter_map(|word| word.parse::<u32>().ok());
    let (held, closed) = (numbers.next().context("held")?, numbers.next().context("closed")?);
    assert!(held > 0 && closed > 100, "{said}");
    for _ in 0..5 {
        world.agent.alive().await?;
        assert!(world.agent.readiness().await?.starts_with("ok"));
    }
    let metrics = world.agent.metrics().await?;
    let shed = metrics.sum("understudy_inbound_refusals_total", &[("reason", "open_files")]);
    assert!(shed >= f64::from(closed), "{shed}");
    // What is open goes on.
    world
        .api
        .admin(["create", "configmap", "meanwhile", "-n", "prod"])?
        .stdout()
        .await?;
    watch.stdout_until(|text| text.contains("configmap/meanwhile")).await?;

    holder.close_stdin();
    holder.wait(Duration::from_secs(10)).await?;
    eventually("it serves again", async || {
        Ok(curl_raw(&world.pod, PODS, &[]).await?.succeeded().then_some(()))
    })
    .await?;
    assert!(
        !world.agent.log().contains("a listener rests"),
        "it never came to EMFILE"
    );
    seen(
        Area::Faults,
        "The agent is out of file descriptors",
        "further connections are closed; /livez and /readyz answer; a neighbour's watch goes on; served again once some are free",
    );
    Ok(())
}

#[tokio::test]
async fn short_of_memory_the_agent_ends_what_fills_it_and_lives() -> Result<()> {
    const LIMIT: u64 = 160 * MIB;
    let limit = MemoryLimit::new(LIMIT)?;
    let options = quiet().memory(&limit).args(["--memory-limit", &LIMIT.to_string()]);
    let world = world(options).await?;
    let neighbour = neighbour(&world.node)?;
    eventually("the neighbour has its session", async || {
        Ok(curl_raw(&neighbour, PODS, &[]).await?.succeeded().then_some(()))
    })
    .await?;
    let pid = world.agent.pid()?;
    let mut hold = python(&world.pod, HOLD, &["1000", LARGE_LIST])?;
    let gives_way = async {
        loop {
            assert_eq!(curl(&neighbour, PODS, &[]).await?.code, 200, "the neighbour goes on");
            world.agent.alive().await?;
            assert!(world.agent.readiness().await?.starts_with("ok"));
            let metrics = world.agent.metrics().await?;
            if metrics.sum("understudy_limit_hits_total", &[("limit", "memory")]) > 0.5
                && hold.stdout().contains("held")
            {
                return anyhow::Ok(());
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(50), gives_way)
        .await
        .with_context(|| format!("{} KiB resident; {}", world.agent.rss_kib().unwrap_or(0), hold.stdout()))??;
    assert_eq!((limit.killed()?, world.agent.pid()?), (0, pid));
    hold.close_stdin();
    hold.wait(Duration::from_secs(20)).await?;
    eventually("it serves all again", async || {
        Ok(curl_raw(&world.pod, PODS, &[]).await?.succeeded().then_some(()))
    })
    .await?;
    assert_eq!(limit.killed()?, 0);
    seen(
        Area::Faults,
        "The agent's container is nearly out of memory, filled by one pod's answers that it doesn't read",
        "all that the pod has open is ended; the kernel kills nothing; every request of a neighbour is answered; /livez and /readyz answer; served again afterwards",
    );
    drop(world);
    Ok(())
}

#[tokio::test]
async fn ten_thousand_connections_that_are_dropped_leave_nothing() -> Result<()> {
    let world = world(quiet()).await?;
    let drop_many = async |count: &str| -> Result<()> {
        let mut running = python(&world.pod, DROP, &[count])?;
        running.close_stdin();
        let output = running.wait(Duration::from_secs(90)).await?.success()?;
        assert!(output.stdout.contains("done"));
        assert_eq!(curl(&world.pod, PODS, &[]).await?.code, 200);
        Ok(())
    };
    // What it keeps for good, it has after these.
    drop_many("2000").await?;
    let settled = async || -> Result<(f64, u64)> {
        eventually("all connections are gone", async || {
            let metrics = world.agent.metrics().await?;
            Ok((metrics.sum("understudy_inbound_connections_open", &[]) < 0.5).then_some(()))
        })
        .await?;
        let metrics = world.agent.metrics().await?;
        Ok((metrics.sum("process_open_fds", &[]), world.agent.rss_kib()?))
    };
    let before = settled().await?;
    drop_many("10000").await?;
    let after = settled().await?;
    assert!(after.0 <= before.0 + 2.0, "file descriptors: {before:?} {after:?}");
    assert!(
        after.1 * 10 <= before.1 * 11,
        "memory within a tenth: {before:?} {after:?}"
    );
    seen(
        Area::Faults,
        "10,000 connections opened and dropped: by FIN and by RST, with and without half a ClientHello",
        "file descriptors are as before, memory within 10 %; the next request is answered 200",
    );
    Ok(())
}
