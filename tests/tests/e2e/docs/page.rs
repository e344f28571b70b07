//! What the pages say: the commands of their ```` ```console ```` blocks, with what is done with each.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

/// What a test does with a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// Only whether the shell and the programs understand it.
    Syntax,
    Run(Place, End),
}

/// Where a command is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// By the administrator of a cluster without Understudy.
    Cluster,
    /// On a node of a cluster with Understudy in it, by its root, who is the cluster's administrator as well.
    Node,
    /// Likewise, before anything is installed.
    BareNode,
    /// In the pod that carries the session.
    Pod,
}

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Well,
    /// It exits with another code than 0, and what is shown is on standard output and standard error.
    Fails,
    /// By ^C, once it has printed what the page says.
    Interrupted,
}

/// A command as a page has it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Typed {
    /// The page, and the line in it.
    pub(super) at: String,
    pub(super) command: String,
    /// What the page says that it prints; empty where it says nothing.
    pub(super) prints: String,
    pub(super) mark: Mark,
}

impl Typed {
    /// Pages of one world: the runbooks share one, every other page has its own.
    pub(super) fn world(&self) -> &str {
        let page = self.at.rsplit_once(':').map_or(&*self.at, |(page, _)| page);
        if page.starts_with("docs/runbooks/") {
            "docs/runbooks"
        } else {
            page
        }
    }

    /// Whether it takes a cluster with an agent.
    pub(super) fn takes_node(&self) -> bool {
        matches!(self.mark, Mark::Run(Place::Node | Place::BareNode | Place::Pod, _))
    }
}

/// The repository.
pub(super) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All pages, by their names from the root.
pub(super) fn pages() -> Result<Vec<(String, String)>> {
    let mut paths = ["README.md", "SECURITY.md", "ARCHITECTURE.md"]
        .map(|name| root().join(name))
        .to_vec();
    let mut rest = vec![root().join("docs")];
    while let Some(directory) = rest.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() {
                rest.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                paths.push(path);
            }
        }
    }
    paths.sort();
    let named = paths.into_iter().map(|path| {
        let name = path.strip_prefix(root()).unwrap_or(&path).display().to_string();
        Ok((name, fs::read_to_string(&path)?))
    });
    named.collect()
}

fn mark(says: &str) -> Option<Mark> {
    if let Some(reason) = says.strip_prefix("syntax; ") {
        return (!reason.is_empty()).then_some(Mark::Syntax);
    }
    let (place, end) = match says.split_once(", ") {
        None => (says, End::Well),
        Some((place, "and fails")) => (place, End::Fails),
        Some((place, "until it has printed that")) => (place, End::Interrupted),
        Some(_) => return None,
    };
    let place = match place {
        "run" => Place::Cluster,
        "run on a node" => Place::Node,
        "run on a bare node" => Place::BareNode,
        "run in the pod" => Place::Pod,
        _ => return None,
    };
    Some(Mark::Run(place, end))
}

/// The commands of a page.
pub(super) fn typed(page: &str, text: &str) -> Result<Vec<Typed>> {
    let mut commands: Vec<Typed> = Vec::new();
    let mut current = None;
    let mut inside = false;
    for (line, number) in text.lines().zip(1..) {
        let at = format!("{page}:{number}");
        if let Some(says) = line.strip_prefix("<!-- console: ") {
            let says = says.strip_suffix(" -->").with_context(|| format!("{at}: no end"))?;
            current = mark(says);
            ensure!(
                current.is_some(),
                "{at}: `{says}` says neither how it is run nor why it isn't"
            );
        } else if inside && line == "```" {
            inside = false;
        } else if line == "```console" {
            inside = true;
            ensure!(current.is_some(), "{at}: no line above says what a test does with it");
        } else if inside && let Some(command) = line.strip_prefix("$ ") {
            commands.push(Typed {
                at,
                command: command.to_owned(),
                prints: String::new(),
                mark: current.unwrap_or(Mark::Syntax),
            });
        } else if inside {
            let Some(last) = commands.last_mut() else {
                bail!("{at}: no command before it");
            };
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

/// Those of all pages.
pub(super) fn all() -> Result<Vec<Typed>> {
    let mut all = Vec::new();
    for (name, text) in pages()? {
        all.extend(typed(&name, &text)?);
    }
    Ok(all)
}

#[test]
fn blocks_are_read_and_none_goes_unsaid() -> Result<()> {
    let page = "<!-- console: run -->\n\n```console\n$ a \\\n    b\nc\n$ d\n```\n<!-- console: syntax; it is far -->\n```console\n$ e\n```\n\
                <!-- console: run on a node, and fails -->\n```console\n$ f\n```\n";
    let commands = typed("p", page)?;
    let shown: Vec<_> = commands
        .iter()
        .map(|typed| (&*typed.command, &*typed.prints, typed.mark))
        .collect();
    let run = Mark::Run(Place::Cluster, End::Well);
    let fails = Mark::Run(Place::Node, End::Fails);
    assert_eq!(
        shown,
        [
            ("a b", "c\n", run),
            ("d", "", run),
            ("e", "", Mark::Syntax),
            ("f", "", fails)
        ]
    );
    for wrong in [
        "```console\n$ a\n```\n",
        "<!-- console: syntax -->\n",
        "<!-- console: run somewhere -->\n",
        "<!-- console: run, and sleeps -->\n",
        "<!-- console: run -->\n```console\n$ a\n",
    ] {
        assert!(typed("p", wrong).is_err(), "{wrong}");
    }
    Ok(())
}
