//! The commands in the pages. Every ```` ```console ```` block stands below a line that says what is done with it:
//!
//! - `<!-- console: run -->`: its commands are run, in the pages' order, by an administrator of a cluster of the test API
//!   server's; what stands below a command is what it prints.
//! - `<!-- console: syntax; REASON -->`: they take what a test can't have. The shell has to understand them, and kubectl and
//!   the agent their arguments.
//!
//! Such a line holds until the next one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use understudy_tests::node::{ApiServer, Node, TestServerOptions, binaries};

/// Programs that a page may use, and that aren't looked into.
const OTHERS: &str = "cargo kind docker helm ctr skopeo curl grep kill pgrep jq asciinema";

/// A command as a page has it.
#[derive(Debug, PartialEq, Eq)]
struct Typed {
    /// The page, and the line in it.
    at: String,
    command: String,
    /// What the page says that it prints; empty where it says nothing.
    prints: String,
    runs: bool,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn pages() -> Result<Vec<PathBuf>> {
    let mut pages = vec![root().join("README.md"), root().join("SECURITY.md")];
    let mut rest = vec![root().join("docs")];
    while let Some(directory) = rest.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() {
                rest.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages.sort();
    Ok(pages)
}

fn typed(page: &str, text: &str) -> Result<Vec<Typed>> {
    let mut commands: Vec<Typed> = Vec::new();
    let mut runs = None;
    let mut inside = false;
    for (line, number) in text.lines().zip(1..) {
        let at = format!("{page}:{number}");
        if let Some(says) = line.strip_prefix("<!-- console: ") {
            let says = says.strip_suffix(" -->").with_context(|| format!("{at}: no end"))?;
            runs = Some(match says.split_once("; ") {
                None if says == "run" => true,
                Some(("syntax", reason)) if !reason.is_empty() => false,
                _ => bail!("{at}: `{says}` is neither `run` nor `syntax; REASON`"),
            });
        } else if inside && line == "```" {
            inside = false;
        } else if line == "```console" {
            inside = true;
            ensure!(runs.is_some(), "{at}: no line above says what a test does with it");
        } else if inside && let Some(command) = line.strip_prefix("$ ") {
            commands.push(Typed {
                at,
                command: command.to_owned(),
                prints: String::new(),
                runs: runs == Some(true),
            });
        } else if inside {
            let last = commands
                .last_mut()
                .with_context(|| format!("{at}: no command before it"))?;
            if last.command.ends_with('\\') {
                last.command.truncate(last.command.len() - 1);
                last.command.push_str(line.trim_start());
            } else {
                last.prints.push_str(line);
                last.prints.push('\n');
            }
        }
    }
    ensure!(!inside, "{page}: a block has no end");
    Ok(commands)
}

fn all() -> Result<Vec<Typed>> {
    let mut all = Vec::new();
    for path in pages()? {
        let name = path.strip_prefix(root()).unwrap_or(&path).display().to_string();
        all.extend(typed(&name, &fs::read_to_string(&path)?)?);
    }
    Ok(all)
}

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
kubectl() { asked "$UNDERSTUDY_KUBECTL" "$@"; }
understudy() { asked "$UNDERSTUDY_BIN" "$@"; }
for other in $OTHERS; do eval "$other() { :; }"; done
"#;
    // What a command writes to goes with it.
    let directory = tempfile::tempdir()?;
    let output = Command::new("/bin/bash")
        .current_dir(&directory)
        .arg("-c")
        .arg(format!("set -euo pipefail\n{FUNCTIONS}\n{command}\n"))
        .env_clear()
        .env("PATH", "/nowhere")
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
    assert!(all.len() > 30, "the pages have lost their commands");
    for typed in &all {
        check(&typed.command).with_context(|| format!("{}: `{}`", typed.at, typed.command))?;
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
    let mut commands: Vec<Typed> = all()?.into_iter().filter(|typed| typed.runs).collect();
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
            assert_eq!(printed, typed.prints, "{}: `{}`", typed.at, typed.command);
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
fn blocks_are_read_and_none_goes_unsaid() -> Result<()> {
    let page = "<!-- console: run -->\n\n```console\n$ a \\\n    b\nc\n$ d\n```\n<!-- console: syntax; it is far -->\n```console\n$ e\n```\n";
    let commands = typed("p", page)?;
    let shown: Vec<_> = commands
        .iter()
        .map(|typed| (&*typed.command, &*typed.prints, typed.runs))
        .collect();
    assert_eq!(shown, [("a b", "c\n", true), ("d", "", true), ("e", "", false)]);
    for wrong in [
        "```console\n$ a\n```\n",
        "<!-- console: syntax -->\n",
        "<!-- console: run -->\n```console\n$ a\n",
    ] {
        assert!(typed("p", wrong).is_err(), "{wrong}");
    }
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
