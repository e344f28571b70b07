//! The commands in the pages. Every ```` ```console ```` block stands below a line that says what is done with it, which a
//! reader of the page doesn't see:
//!
//! - `<!-- console: run -->`: its commands are run, in the pages' order, by an administrator of a cluster of the test API
//!   server's, without an agent.
//! - `<!-- console: run on a node -->`: by a node's root, who is the cluster's administrator as well. Understudy is there, as
//!   deploy/examples/support installs it, and so are the session and the pod of docs/examples/alice.yaml: kernel programs,
//!   agent and redirect are real. `run on a bare node`: likewise, and nothing is there yet.
//! - `<!-- console: run in the pod -->`: in that pod.
//! - `<!-- console: syntax; REASON -->`: they take what a test can't have. The shell has to understand them, and kubectl and
//!   the agent their arguments.
//!
//! Those that are run may say `, and fails` behind it, or `, until it has printed that` of what is ended by ^C. What stands below
//! a command is what it prints; `…` stands for [what changes](prints). The commands of a page are run in its order, on a node of
//! the page's own; the runbooks share one. Such a line holds until the next one.

mod desk;
mod kubelet;
mod links;
mod page;
mod prints;

use std::{fmt::Write as _, fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use rstest::rstest;
use understudy_tests::node::{ApiServer, Node, TestServerOptions, binaries};

use self::{
    desk::Desk,
    page::{Mark, Place, Typed, all, root},
};

/// Programs that a page may use, and that aren't looked into.
const OTHERS: &str = "cargo kind docker helm ctr skopeo curl grep kill pgrep jq asciinema install ln mkdir age-keygen";
/// How many of the pages' commands are run at least, of a hundred.
const RUN_AT_LEAST: usize = 80;

/// Has bash read the command, with functions in place of programs: those of kubectl and the agent ask the program itself
/// whether it knows such arguments.
fn check(command: &str) -> Result<()> {
    const FUNCTIONS: &str = r#"
asked() {
    local program=$1 words=()
    shift
    while (($#)) && [[ $1 != -- ]]; do words+=("$1"); shift; done
    "$program" "${words[@]}" --help >/dev/null </dev/null
}
kubectl() {
    if [[ $1 == understudy ]]; then shift; understudy "$@"; else asked "$UNDERSTUDY_KUBECTL" "$@"; fi
}
understudy() { asked "$UNDERSTUDY_BIN" "$@"; }
for other in $OTHERS; do eval "$other() { :; }"; done
"#;
    // What a command's own shell would write, it writes there.
    let home = tempfile::tempdir()?;
    fs::create_dir_all(home.path().join(".local/share/bash-completion/completions"))?;
    let output = Command::new("/bin/bash")
        .arg("-c")
        .arg(format!("set -euo pipefail\ncd ~\n{FUNCTIONS}\n{command}\n"))
        .env_clear()
        .env("PATH", "/nowhere")
        .env("HOME", home.path())
        .env("OTHERS", OTHERS)
        .env("UNDERSTUDY_KUBECTL", binaries::kubectl()?)
        .env("UNDERSTUDY_BIN", binaries::understudy()?)
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn every_command_of_the_pages_is_understood() -> Result<()> {
    let all = all()?;
    assert!(all.len() > 100, "the pages have lost their commands");
    for typed in &all {
        // Those that are run show it themselves.
        if typed.mark == Mark::Syntax {
            check(&typed.command).with_context(|| format!("{}: `{}`", typed.at, typed.command))?;
        }
        for word in typed.command.split_whitespace() {
            let is_ours = word.starts_with("deploy/") || word.starts_with("docs/");
            ensure!(
                !is_ours || root().join(word).exists(),
                "{}: there is no {word}",
                typed.at
            );
        }
    }
    Ok(())
}

#[test]
fn most_commands_of_the_pages_are_run() -> Result<()> {
    let all = all()?;
    let run = all.iter().filter(|typed| typed.mark != Mark::Syntax).count();
    let least = all.len() * RUN_AT_LEAST / 100;
    assert!(run >= least, "{run} of {} are run, and {least} were to be", all.len());
    let source = include_str!("docs.rs");
    for typed in all.iter().filter(|typed| typed.takes_node()) {
        let world = typed.world();
        assert!(source.contains(&format!("(\"{world}\")]")), "no test runs {world}");
    }
    Ok(())
}

#[rstest]
#[case::readme("README.md")]
#[case::installation("docs/installation.md")]
#[case::operations("docs/operations.md")]
#[case::quickstart("docs/quickstart.md")]
#[case::recording("docs/recording.md")]
#[case::runbooks("docs/runbooks")]
#[case::sessions("docs/sessions.md")]
#[case::tools("docs/tools.md")]
#[case::troubleshooting("docs/troubleshooting.md")]
#[tokio::test]
async fn what_the_pages_say_runs_on_a_node_and_prints_that(#[case] world: &str) -> Result<()> {
    let commands: Vec<Typed> = all()?
        .into_iter()
        .filter(|typed| typed.world() == world && typed.takes_node())
        .collect();
    ensure!(!commands.is_empty(), "{world} has nothing to run on a node any more");
    let is_bare = commands
        .iter()
        .any(|typed| matches!(typed.mark, Mark::Run(Place::BareNode, _)));
    let mut desk = if is_bare {
        Desk::bare().await?
    } else {
        Desk::installed().await?
    };
    let mut wrong = String::new();
    for typed in &commands {
        if let Err(error) = desk.run(typed).await {
            let _ = writeln!(wrong, "{}: `{}`: {error:#}\n", typed.at, typed.command);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    Ok(())
}

#[tokio::test]
async fn what_the_pages_say_is_run_runs_and_prints_that() -> Result<()> {
    let node = Node::new()?;
    let api = ApiServer::start_test_program(&node, &TestServerOptions::default()).await?;
    for namespace in ["prod", "support"] {
        api.namespace(namespace).await?;
    }
    let kubectl = binaries::kubectl()?;
    // kubectl's way to the cluster is what `admin` gives it.
    let kubeconfig = api.kubeconfig()?;
    let mut run = 0;
    let is_run = |typed: &Typed| matches!(typed.mark, Mark::Run(Place::Cluster, _));
    let mut commands: Vec<Typed> = all()?.into_iter().filter(is_run).collect();
    // The definition of the resource comes first, whichever page it is in.
    commands.sort_by_key(|typed| !typed.command.starts_with("understudy crd"));
    for typed in commands {
        let script = format!(
            "set -euo pipefail\ncd '{}'\nkubectl() {{ '{}' --kubeconfig '{}' \"$@\"; }}\nunderstudy() {{ '{}' \"$@\"; }}\n{}\n",
            root().display(),
            kubectl.display(),
            kubeconfig.display(),
            binaries::understudy()?.display(),
            typed.command,
        );
        let bash = node.control_plane_command("/bin/bash")?.arg("-c").arg(script);
        let printed = bash
            .stdout()
            .await
            .with_context(|| format!("{}: `{}`", typed.at, typed.command))?;
        if !typed.prints.is_empty() {
            let shown = format!(
                "{}: `{}` says\n{}\nand prints\n{printed}",
                typed.at, typed.command, typed.prints
            );
            assert!(prints::is_said(&typed.prints, &printed), "{shown}");
        }
        if typed.command.starts_with("understudy crd") {
            // Discovery follows a moment later.
            api.define_sessions().await?;
        }
        run += 1;
    }
    assert!(run >= 2, "no page has anything to run any more");
    Ok(())
}

#[test]
fn what_a_program_does_not_know_is_found() {
    for (wrong, says) in [
        ("kubectl get pods --no-such-flag", "no-such-flag"),
        ("understudy check --no-such-flag", "no-such-flag"),
        ("no-such-program", "no-such-program"),
        ("kubectl get 'pods", "matching"),
    ] {
        let error = check(wrong).unwrap_err().to_string();
        assert!(error.contains(says), "{wrong}: {error}");
    }
    check("kubectl --namespace a exec b -- c --whatever | grep d").unwrap();
}
