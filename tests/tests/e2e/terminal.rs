//! What operators look on with: `tail`, and `top` on a terminal.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use understudy_tests::{
    node::{Agent, Command, Node, Pod, PodSpec, Running, Session, Terminal, binaries, eventually},
    screens,
};

use crate::world::{CA, World, curl};

const PODS: &str = "/api/v1/namespaces/prod/pods";

#[tokio::test]
async fn a_terminal_shows_what_is_typed_and_goes_with_its_guard() -> Result<()> {
    let node = Node::new()?;
    let terminal = Terminal::open(&node, 60, 10).await?;
    let echo = node.command("printf")?.args([r"%s-%s\n", "it's", "seen"]);
    terminal.run(&echo).await?;
    terminal
        .until("what was printed", |screen| screen.contains("\nit's-seen"))
        .await?;
    terminal.text("stty size").await?;
    terminal.resize(80, 24).await?;
    terminal.keys(&["Enter"]).await?;
    let screen = terminal
        .until("the new size", |screen| screen.contains("\n24 80"))
        .await?;
    assert_eq!(screen.lines().count(), 24, "{screen}");
    assert_eq!(terminal.says("#{alternate_on} #{cursor_flag}").await?, "0 1");

    let server = terminal.says("#{pid}").await?;
    let running = std::path::Path::new("/proc").join(server);
    assert!(running.exists());
    drop(terminal);
    eventually("tmux is gone", async || Ok((!running.exists()).then_some(()))).await
}

/// Requests from a pod, so many a minute, until this is dropped.
fn traffic(pod: &Pod, path: &str, a_minute: u32) -> Result<Running> {
    let curl = binaries::on_path("curl").context("curl is not on PATH: apt-get install curl")?;
    pod.command(curl)
        .args(["--silent", "--output", "/dev/null", "--rate", &format!("{a_minute}/m")])
        .args(["--cacert", CA])
        .arg(format!("https://kubernetes.default.svc{path}?limit=[1-100000]"))
        .spawn()
}

#[tokio::test]
async fn tail_shows_what_is_asked_for_as_it_comes() -> Result<()> {
    let world = World::new().await?;
    let tail = |words: &[&str]| -> Result<Running> { Agent::operator(&world.node, "tail")?.args(words).spawn() };
    let all = tail(&[])?;
    let json = tail(&["-o", "json", "--session", "support/alice", "--verb", "list,create"])?;
    let refused = tail(&["--refused", "--code", "4xx", "--pod", "shell", "-n", "support"])?;
    let others = tail(&["--session", "bob"])?;
    eventually("all are heard", async || {
        curl(&world.pod, PODS, &[]).await?;
        curl(&world.pod, PODS, &["--header", "Impersonate-User: admin"]).await?;
        let heard = [&all, &json, &refused].map(|tail| !tail.stdout().is_empty());
        Ok((heard == [true; 3]).then_some(()))
    })
    .await?;
    let text = all.stdout();
    assert!(text.contains(" support/alice shell  list pods prod  200 "), "{text}");
    assert!(text.contains("403 refused: impersonation"), "{text}");
    assert!(!text.contains('\u{1b}'), "no colour without a terminal: {text}");
    let text = refused.stdout();
    assert!(
        text.lines().all(|line| line.contains("refused: impersonation")),
        "{text}"
    );
    let text = json.stdout();
    let event: Value = serde_json::from_str(text.lines().next().context("a line")?)?;
    assert_eq!(
        (&event["kind"], &event["verb"]),
        (&"Event".into(), &"list".into()),
        "{text}"
    );
    eventually("the log has it as well", async || {
        let logged = world.agent.audit()?;
        Ok(logged
            .iter()
            .any(|logged| event["auditID"] == *logged.audit_id)
            .then_some(()))
    })
    .await?;
    for secret in world.node.accounts().secrets() {
        assert!(
            !all.stdout().contains(secret) && !json.stdout().contains(secret),
            "a secret is told"
        );
    }
    assert_eq!(others.stdout(), "", "nobody else's");

    // It goes on when the agent comes back, and says that it was away.
    let World {
        mut agent,
        pod,
        node,
        api: _api,
        ..
    } = world;
    agent.kill9().await?;
    let mut agent = agent.restart().await?;
    eventually("what comes afterwards is heard", async || {
        curl(&pod, "/version", &[]).await?;
        Ok(all.stdout().contains("get /version").then_some(()))
    })
    .await?;
    assert!(all.stderr().contains("the log alone"), "{}", all.stderr());
    let mut all = all;
    let pid = Pid::from_raw(all.pid().context("it runs")?.try_into()?);
    assert!(!all.has_ended()?);
    kill(pid, Signal::SIGINT)?;
    assert_eq!(all.wait(Duration::from_secs(10)).await?.code, Some(0));
    agent.kill9().await?;
    let nobody = Agent::operator(&node, "tail")?.output().await?;
    assert!(
        !nobody.succeeded() && nobody.stderr.contains("no agent answers"),
        "{nobody:?}"
    );
    Ok(())
}

/// The names of the sessions on a screen of `top`, from above.
fn sessions(screen: &str) -> Vec<&str> {
    let rows = screen.lines().filter(|line| line.starts_with("support "));
    rows.filter_map(|row| row.split_whitespace().nth(1)).collect()
}

/// What stands in a column of a session's row, counted from the right.
fn figure(screen: &str, session: &str, from_the_right: usize) -> Option<f64> {
    let row = screen
        .lines()
        .find(|line| line.split_whitespace().nth(1) == Some(session))?;
    row.split_whitespace().rev().nth(from_the_right)?.parse().ok()
}

/// Requests and failures a second.
fn rates(screen: &str, session: &str) -> Option<(f64, f64)> {
    Some((figure(screen, session, 4)?, figure(screen, session, 3)?))
}

async fn assert_given_back(terminal: &Terminal) -> Result<()> {
    terminal
        .until("the shell's screen", |screen| screen.contains("before the screen"))
        .await?;
    assert_eq!(terminal.says("#{alternate_on} #{cursor_flag}").await?, "0 1");
    terminal.given_back().await?;
    terminal.text("echo before the screen\n").await
}

#[tokio::test]
async fn top_shows_who_is_on_and_gives_the_terminal_back() -> Result<()> {
    let world = World::new().await?;
    let builder = world.node.pod(PodSpec::named("builder"))?;
    let bob = Session::named("support", "bob")
        .acting_as(&world.node.accounts().viewer)
        .for_pod(&builder);
    world.node.sessions().write(&bob)?;
    let _busy = traffic(&world.pod, PODS, 900)?;
    let _failing = traffic(&builder, "/api/v1/namespaces/prod/nothing", 300)?;

    let terminal = Terminal::open(&world.node, 80, 24).await?;
    terminal.text("echo before the screen\n").await?;
    let top = Agent::operator(&world.node, "top")?.arg("--every=1");
    terminal.run(&top).await?;
    let seen = |screen: &str| {
        let busy = rates(screen, "alice").is_some_and(|(rate, failures)| rate > 7.0 && failures == 0.0);
        busy && rates(screen, "bob").is_some_and(|(rate, failures)| rate > 2.0 && failures > 2.0)
    };
    let screen = terminal.until("both sessions with their rates", seen).await?;
    assert_eq!(sessions(&screen), ["alice", "bob"], "the busiest first: {screen}");
    assert!(
        screen.contains("sa:prod:viewer") && screen.contains("1/1 agents"),
        "{screen}"
    );
    screens::keep("top", &terminal.coloured().await?)?;

    // Sorted, filtered, and back.
    for (key, order) in [
        ("E", ["bob", "alice"]),
        ("N", ["alice", "bob"]),
        ("N", ["bob", "alice"]),
    ] {
        terminal.keys(&[key]).await?;
        terminal
            .until(&format!("sorted by {key}"), |screen| sessions(screen) == order)
            .await?;
    }
    terminal.text("/ALI").await?;
    terminal
        .until("the filter", |screen| {
            sessions(screen) == ["alice"] && screen.contains("/ALI")
        })
        .await?;
    terminal.keys(&["Enter", "Enter"]).await?;
    terminal
        .until("its pods", |screen| {
            screen.contains("pods of support/alice") && screen.contains("intercepted")
        })
        .await?;
    terminal.keys(&["Enter"]).await?;
    let requests = terminal
        .until("its requests", |screen| screen.matches("list pods prod").count() > 3)
        .await?;
    assert!(requests.contains("requests of support/alice"), "{requests}");
    assert!(!requests.contains("nothing"), "the other's aren't there: {requests}");
    screens::keep("top-requests", &terminal.coloured().await?)?;
    // Apart, for two escapes at once are another key.
    terminal.keys(&["Escape"]).await?;
    terminal
        .until("its pods again", |screen| screen.contains("pods of support/alice"))
        .await?;
    terminal.keys(&["Escape"]).await?;
    terminal
        .until("the filtered table", |screen| sessions(screen) == ["alice"])
        .await?;
    terminal.keys(&["Escape"]).await?;
    terminal
        .until("all of them", |screen| sessions(screen).len() == 2)
        .await?;
    terminal.resize(120, 30).await?;
    terminal
        .until("what there is room for", |screen| {
            screen.contains("+P50") && screen.lines().count() == 30
        })
        .await?;
    terminal.keys(&["?"]).await?;
    terminal
        .until("the help", |screen| screen.contains("requests a second"))
        .await?;
    terminal.keys(&["x", "q"]).await?;
    assert_given_back(&terminal).await?;
    end_and_lose(world, &terminal, &top).await
}

/// However it ends, the terminal is given back; and an agent that is gone is said.
async fn end_and_lose(world: World, terminal: &Terminal, top: &Command) -> Result<()> {
    for end in [None, Some(Signal::SIGTERM)] {
        terminal.run(top).await?;
        terminal
            .until("it is there again", |screen| sessions(screen).len() == 2)
            .await?;
        match end {
            None => terminal.keys(&["C-c"]).await?,
            Some(signal) => {
                let shell = terminal.says("#{pane_pid}").await?;
                let children = fs::read_to_string(format!("/proc/{shell}/task/{shell}/children"))?;
                let top = children.split_whitespace().next().context("it runs")?;
                kill(Pid::from_raw(top.parse()?), signal)?;
            }
        }
        assert_given_back(terminal).await?;
    }

    terminal.run(top).await?;
    terminal
        .until("it is there again", |screen| sessions(screen).len() == 2)
        .await?;
    let World { mut agent, .. } = world;
    agent.kill9().await?;
    terminal
        .until("that it can't be reached", |screen| {
            screen.contains("0/1 agents") && screen.contains("this node: ") && sessions(screen).len() == 2
        })
        .await?;
    let _agent = agent.restart().await?;
    terminal
        .until("that it is back", |screen| screen.contains("1/1 agents"))
        .await?;
    terminal.keys(&["q"]).await?;
    assert_given_back(terminal).await
}

#[tokio::test]
async fn top_says_that_it_wants_a_terminal() -> Result<()> {
    let node = Node::new()?;
    let output = Agent::operator(&node, "top")?.output().await?;
    assert!(
        !output.succeeded() && output.stderr.contains("sessions --watch"),
        "{output:?}"
    );
    Ok(())
}
