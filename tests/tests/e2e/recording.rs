//! Recordings of exec, made of what kubectl does in a pod: played by asciinema, and proven by sums that are made anew here.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use rstest::rstest;
use serde_json::{Value, json};
use understudy_cases::{Area, seen};
use understudy_tests::node::{
    Agent, AgentOptions, ApiServer, Node, PodSpec, Session, SmallDisk, TestServerOptions, binaries, eventually,
};

use crate::world::{WITHIN_A_SECOND, World};

const MIB: u64 = 1024 * 1024;

/// Runs a command on a terminal of its own, and prints what that shows.
const ON_A_TERMINAL: &str = "\
import os, pty, sys
sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))
";

/// Runs a command on a terminal of 100 columns by 30, types a line when it says that it's ready, and makes the terminal
/// larger when it has said that line again. What it says meanwhile is printed, until this is killed.
const TYPES_AND_RESIZES: &str = "\
import fcntl, os, pty, struct, sys, termios
def resize(terminal, columns, rows):
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('HHHH', rows, columns, 0, 0))
pid, terminal = pty.fork()
if pid == 0:
    resize(0, 100, 30)
    os.execv(sys.argv[1], sys.argv[1:])
said = b''
def read():
    global said
    piece = os.read(terminal, 65536)
    said += piece
    os.write(1, piece)
while b'ready' not in said:
    read()
os.write(terminal, b'typed\\r')
while b'typed' not in said:
    read()
resize(terminal, 120, 40)
while True:
    read()
";

/// With the session recorded into a directory.
async fn recorded_to(node: Node, recording: &str, directory: &Path) -> Result<World> {
    recorded_with(node, recording, false, directory).await
}

/// With what is typed, where so asked.
async fn recorded_with(node: Node, recording: &str, stdin: bool, directory: &Path) -> Result<World> {
    let api = ApiServer::start_test_program(&node, &TestServerOptions::default()).await?;
    let pod = node.pod(PodSpec::named("shell"))?;
    let untagged = node.pod(PodSpec::named("untagged"))?;
    let session = Session::named("support", "alice")
        .acting_as(&node.accounts().viewer)
        .field("recording", json!(recording))
        .field("recordStdin", json!(stdin))
        .for_pod(&pod);
    node.sessions().write(&session)?;
    let options = AgentOptions::default().args(["--recordings", &directory.display().to_string()]);
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

/// A recording whose every sum is right.
#[derive(Debug)]
struct Recorded {
    path: PathBuf,
    head: Value,
    events: Vec<Value>,
    /// Why it ended, where it has its end.
    end: Option<String>,
}

impl Recorded {
    fn read(path: PathBuf) -> Result<Self> {
        let text = fs::read_to_string(&path)?;
        let mut all = blake3::Hasher::new();
        let mut lines = Vec::new();
        for line in text.split_inclusive('\n') {
            ensure!(line.ends_with('\n'), "a line that isn't whole: {line}");
            let parsed: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            if parsed[1] == "h" {
                let sum = all.finalize().to_hex();
                ensure!(parsed[2] == sum.as_str(), "the sum is wrong in {line}");
            }
            all.update(line.as_bytes());
            lines.push(parsed);
        }
        ensure!(
            lines.last().is_some_and(|line| line[1] == "h"),
            "it doesn't end with a sum"
        );
        let head = lines.remove(0);
        let end = lines.iter().find(|line| line[1] == "z");
        let end = end.and_then(|line| line[2].as_str()).map(str::to_owned);
        Ok(Self {
            path,
            head,
            events: lines,
            end,
        })
    }

    /// All that there are, in the order in which they were begun.
    fn all_in(directory: &Path) -> Result<Vec<Self>> {
        let mut paths: Vec<PathBuf> = fs::read_dir(directory)?
            .map(|entry| Ok(entry?.path()))
            .filter(|path| {
                path.as_ref()
                    .is_ok_and(|path| path.extension() == Some("cast".as_ref()))
            })
            .collect::<Result<_>>()?;
        paths.sort();
        paths.into_iter().map(Self::read).collect()
    }

    /// The one that there is, when it has its end.
    async fn ended_in(directory: &Path) -> Result<Self> {
        eventually("a recording at its end", async || {
            let only = Self::all_in(directory).unwrap_or_default().pop();
            Ok(only.filter(|recorded| recorded.end.is_some()))
        })
        .await
    }

    fn text(&self, code: &str) -> String {
        let of_code = self.events.iter().filter(|event| event[1] == code);
        of_code.filter_map(|event| event[2].as_str()).collect()
    }

    /// What asciinema shows of it, without its pauses.
    fn played(&self) -> Result<String> {
        let home = self
            .path
            .ancestors()
            .nth(2)
            .context("the node's directory")?
            .join("asciinema");
        let output = std::process::Command::new(binaries::python()?)
            .args(["-m", "asciinema", "cat"])
            .arg(&self.path)
            .env("PYTHONUTF8", "1")
            // It makes itself a home, and stumbles where another of it does at the same time.
            .env("ASCIINEMA_CONFIG_HOME", home)
            .output()
            .context("asciinema doesn't run")?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    }
}

#[rstest]
#[case::websocket("true", &["-i"])]
#[case::spdy("false", &["-i"])]
#[case::websocket_with_a_terminal("true", &["-i", "-t"])]
#[case::spdy_with_a_terminal("false", &["-i", "-t"])]
#[tokio::test]
async fn what_is_recorded_is_what_the_terminal_showed(#[case] websocket: &str, #[case] options: &[&str]) -> Result<()> {
    let node = Node::new()?;
    let directory = node.directory().join("recordings");
    let world = recorded_to(node, "required", &directory).await?;
    let mark = world.api.mark().await?;
    let command = [
        "sh",
        "-c",
        "echo one; sleep 0.2; echo caf\u{e9} >&2; sleep 0.2; echo three",
    ];
    let shown = world
        .pod
        .command(binaries::python()?)
        .args(["-c", ON_A_TERMINAL])
        .arg(binaries::kubectl()?)
        .arg("exec")
        .args(options)
        .args(["-n", "prod", "web-0", "--"])
        .args(command)
        .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websocket)
        .stdout()
        .await?;
    assert!(shown.contains("caf\u{e9}"), "{shown:?}");
    let recorded = Recorded::ended_in(&directory).await?;
    assert_eq!(recorded.text("o"), shown, "{recorded:?}");
    assert_eq!(recorded.played()?, shown);
    let verify = world
        .node
        .command(binaries::understudy()?)?
        .args(["recordings", "verify"]);
    let said = verify.arg(&recorded.path).stdout().await?;
    assert!(said.contains(": whole, closed, blake3 "), "{said}");
    assert_eq!(
        (recorded.end.as_deref(), recorded.text("x").as_str()),
        (Some("closed"), "0")
    );
    let about = &recorded.head["understudy"];
    assert_eq!(about["session"], "support/alice");
    assert_eq!(about["impersonatedUser"], world.viewer());
    assert_eq!(
        about["target"],
        json!({"subresource": "exec", "namespace": "prod", "pod": "web-0"})
    );
    assert_eq!(about["asked"]["command"], json!(command));
    assert_eq!(about["asked"]["tty"], options.contains(&"-t"));
    // By it the recording is found from the cluster's own audit log, and the other way round.
    let audit_id = about["auditID"].as_str().context("an Audit-ID")?;
    let requests = world.api.seen_since(mark).await?;
    let exec = requests.iter().find(|request| request.path().ends_with("/exec"));
    assert!(exec.context("the exec")?.holds(audit_id), "{requests:?}");
    Ok(())
}

#[rstest]
#[case::websocket("true", true)]
#[case::spdy("false", true)]
#[case::without_what_is_typed("true", false)]
#[tokio::test]
async fn the_terminals_sizes_are_recorded_and_what_is_typed_where_asked(
    #[case] websocket: &str,
    #[case] stdin: bool,
) -> Result<()> {
    let node = Node::new()?;
    let directory = node.directory().join("recordings");
    let world = recorded_with(node, "required", stdin, &directory).await?;
    let kubectl = world
        .pod
        .command(binaries::python()?)
        .args(["-c", TYPES_AND_RESIZES])
        .arg(binaries::kubectl()?)
        .args([
            "exec",
            "-i",
            "-t",
            "-n",
            "prod",
            "web-0",
            "--",
            "sh",
            "-c",
            "echo ready; cat",
        ])
        .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websocket);
    let running = kubectl.spawn()?;
    let sizes = |recorded: &Recorded| -> Vec<String> {
        let of_sizes = recorded.events.iter().filter(|event| event[1] == "r");
        of_sizes
            .filter_map(|event| event[2].as_str().map(str::to_owned))
            .collect()
    };
    eventually("the new size is recorded", async || {
        let recorded = Recorded::all_in(&directory).unwrap_or_default();
        Ok(recorded
            .iter()
            .any(|one| sizes(one).iter().any(|size| size == "120x40"))
            .then_some(()))
    })
    .await?;
    running.kill().await?;
    let recorded = Recorded::ended_in(&directory).await?;
    assert_eq!(sizes(&recorded), ["100x30", "120x40"], "{recorded:?}");
    assert_eq!(recorded.text("i"), if stdin { "typed\r" } else { "" }, "{recorded:?}");
    assert_eq!(recorded.text("o"), "ready\ntyped\r", "{recorded:?}");
    assert_eq!(recorded.played()?, recorded.text("o"));
    Ok(())
}

#[rstest]
#[case::websocket("true")]
#[case::spdy("false")]
#[tokio::test]
async fn attach_is_recorded(#[case] websocket: &str) -> Result<()> {
    let node = Node::new()?;
    let directory = node.directory().join("recordings");
    let world = recorded_to(node, "required", &directory).await?;
    let attach = world
        .pod
        .kubectl_command(["attach", "-n", "prod", "web-0"])?
        .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websocket)
        .stdout()
        .await?;
    assert_eq!(attach, "attached to web-0\n");
    let recorded = Recorded::ended_in(&directory).await?;
    // Lines of what has no terminal are broken for the one that plays it.
    assert_eq!(recorded.text("o").replace('\r', ""), attach);
    assert_eq!(
        recorded.head["understudy"]["target"],
        json!({"subresource": "attach", "namespace": "prod", "pod": "web-0"})
    );
    assert_eq!(recorded.end.as_deref(), Some("closed"));
    Ok(())
}

/// What was shown stands in the one recording: it is gathered for a few milliseconds before.
async fn written_down(directory: &Path, shown: &str) -> Result<()> {
    eventually("it is written down", async || {
        let recorded = Recorded::all_in(directory).unwrap_or_default();
        Ok(recorded.iter().any(|one| one.text("o").contains(shown)).then_some(()))
    })
    .await
}

#[tokio::test]
async fn a_full_disk_ends_what_must_be_recorded_and_nothing_else() -> Result<()> {
    let node = Node::new()?;
    let disk = SmallDisk::mount(node.directory().join("recordings"), MIB)?;
    let world = recorded_to(node, "required", disk.path()).await?;
    let words = ["exec", "-i", "-n", "prod", "web-0", "--", "cat"];
    let mut exec = world.pod.kubectl_command(words)?.spawn()?;
    exec.write(b"alive\n").await?;
    exec.stdout_until(|text| text.contains("alive")).await?;
    written_down(disk.path(), "alive").await?;
    disk.fill()?;
    // More than what is left of the recording's last page. It may end before all of it is taken.
    let _ = exec.write("x".repeat(64 * 1024).as_bytes()).await;
    exec.wait(10 * WITHIN_A_SECOND).await?;
    let recorded = Recorded::all_in(disk.path())?;
    assert_eq!(recorded.len(), 1);
    assert_eq!(recorded[0].text("o").lines().next(), Some("alive"));
    assert!(recorded[0].played()?.starts_with("alive\r\n"));
    // What can't be recorded isn't begun.
    let refused = world.pod.kubectl("exec -n prod web-0 -- true").await?;
    assert!(
        !refused.succeeded() && refused.stderr.contains("recorded, and that is not possible"),
        "{refused:?}"
    );
    assert_eq!(Recorded::all_in(disk.path())?.len(), 1);
    // Nothing else is kept from anybody.
    world.pod.kubectl("get pods -n prod").await?.success()?;
    let metrics = world.agent.metrics().await?;
    for cause in ["write", "begin"] {
        let failures = metrics.sum("understudy_recording_failures_total", &[("cause", cause)]);
        assert!((0.5..2.5).contains(&failures), "{cause}: {failures}");
    }
    fs::remove_file(disk.path().join("filling"))?;
    world.pod.kubectl("exec -n prod web-0 -- true").await?.success()?;
    seen(
        Area::Faults,
        "Disk full for recordings, recording: required",
        "the exec that runs ends, and its recording is whole up to there; others are answered 503 (recording-unavailable); all other requests go on",
    );
    Ok(())
}

#[tokio::test]
async fn what_a_killed_agent_leaves_plays_and_is_proven() -> Result<()> {
    let node = Node::new()?;
    let directory = node.directory().join("recordings");
    let mut world = recorded_to(node, "best-effort", &directory).await?;
    let words = ["exec", "-i", "-n", "prod", "web-0", "--", "cat"];
    let mut exec = world.pod.kubectl_command(words)?.spawn()?;
    exec.write(b"alive\n").await?;
    exec.stdout_until(|text| text.contains("alive")).await?;
    written_down(&directory, "alive").await?;
    world.agent.kill9().await?;
    let recorded = Recorded::all_in(&directory)?.pop().context("a recording")?;
    assert_eq!(recorded.end, None);
    let verify = world
        .node
        .command(binaries::understudy()?)?
        .args(["recordings", "verify"]);
    let said = verify.arg(&recorded.path).output().await?;
    assert!(!said.succeeded(), "{said:?}");
    assert!(
        said.stdout.contains("as it was written, but without its end"),
        "{said:?}"
    );
    assert_eq!(recorded.played()?, "alive\r\n");
    Ok(())
}

#[rstest]
#[case::websocket("true")]
#[case::spdy("false")]
#[tokio::test]
async fn a_port_forward_is_recorded_by_ports_and_bytes(#[case] websocket: &str) -> Result<()> {
    let node = Node::new()?;
    let directory = node.directory().join("recordings");
    let world = recorded_to(node, "required", &directory).await?;
    let words = ["port-forward", "-n", "prod", "pod/web-0", "8080:80"];
    let mut forward = world
        .pod
        .kubectl_command(words)?
        .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websocket)
        .spawn()?;
    forward
        .stdout_until(|text| text.contains("Forwarding from 127.0.0.1:8080"))
        .await?;
    let script = "exec 3<>/dev/tcp/127.0.0.1/8080; echo through the tunnel >&3; read -r line <&3; echo \"$line\"";
    let shell = binaries::on_path("bash").unwrap_or_else(|| "/bin/bash".into());
    let said = "through the tunnel\n";
    for _ in 0..2 {
        let echo = world.pod.command(&shell).args(["-c", script]);
        assert_eq!(echo.stdout().await?, said);
    }
    let closed = format!("2 80 closed {} {}", said.len(), said.len());
    let open = eventually("both connections' ends", async || {
        let only = Recorded::all_in(&directory).unwrap_or_default().pop();
        Ok(only.filter(|recorded| recorded.text("p").contains(&closed)))
    })
    .await?;
    assert_eq!(open.end, None, "it is written while it runs");
    assert_eq!(open.head["understudy"]["target"]["subresource"], "portforward");
    let expected = ["1 80 opened", &closed.replacen('2', "1", 1), "2 80 opened", &closed];
    assert_eq!(open.text("p"), expected.concat());
    forward.kill().await?;
    let ended = Recorded::ended_in(&directory).await?;
    assert_eq!(ended.played()?, "", "nothing was shown");
    Ok(())
}
