//! Looking on at agents: at the one of this node, or at those of all nodes that a session is on, each over a connection of its
//! own. One that breaks off is tried again, and that is said; nodes come and go with sessions.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use serde::Deserialize;
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{
    AskOptions,
    ask::{AskError, Lines, follow_socket},
    cluster,
    kubectl::{Kubectl, KubectlError},
};
use crate::operator::view::NoticeView;

/// Between two looks at which nodes there are.
const LOOK: Duration = Duration::from_secs(15);
/// Each takes a kubectl of its own.
const NODES: usize = 32;
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_secs(30);
/// A connection that lasted so long is made anew at once: the token's time is up.
const LASTING: Duration = Duration::from_mins(1);
/// Lines that wait to be looked at.
const LINES: usize = 256;
/// What the agent of this node is called until it says its node's name.
pub(super) const HERE: &str = "this node";

/// What is heard of agents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Heard {
    /// A node's agent is being looked on at.
    Up(Arc<str>),
    /// It says something.
    Line(Arc<str>, Bytes),
    /// It says something of what it says.
    Notice(Arc<str>, NoticeView),
    /// It can't be heard any more, for this reason. It is tried again.
    Lost(Arc<str>, String),
    /// It is of no concern any more.
    Gone(Arc<str>),
    /// Which nodes there are can't be told.
    Blind(String),
    /// There are so many nodes; some aren't looked on at.
    TooMany(usize),
}

/// What looks on; dropping it ends that.
#[derive(Debug)]
pub(super) struct Live {
    heard: mpsc::Receiver<Heard>,
    // Ended with this, and what they started with them.
    _task: Task,
}

/// A task that ends where this is dropped.
#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Why nothing is heard of an agent.
#[derive(Debug, thiserror::Error)]
enum LostError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error(transparent)]
    Cluster(#[from] KubectlError),
    #[error("it has no agent: look at the DaemonSet's pods")]
    NoAgent,
    #[error("{0}")]
    Ended(String),
}

impl Live {
    /// Asks agents for what is at `path`, and goes on; in a cluster those where sessions are, of one namespace or of all.
    pub(super) fn begin(options: &AskOptions, namespace: Option<&str>, path: String) -> Self {
        let (to, heard) = mpsc::channel(LINES);
        let (options, namespace) = (Arc::new(options.clone()), namespace.map(str::to_owned));
        let task = tokio::spawn(async move {
            let path: Arc<str> = path.into();
            if options.socket.is_some() {
                follow(options, HERE.into(), path, to).await;
            } else {
                follow_nodes(options, namespace, path, to).await;
            }
        });
        Self {
            heard,
            _task: Task(task),
        }
    }

    /// What is heard next.
    pub(super) async fn next(&mut self) -> Heard {
        match self.heard.recv().await {
            Some(heard) => heard,
            // The task goes on for as long as this.
            None => std::future::pending().await,
        }
    }
}

async fn follow_nodes(options: Arc<AskOptions>, namespace: Option<String>, path: Arc<str>, to: mpsc::Sender<Heard>) {
    let mut following: BTreeMap<Arc<str>, Task> = BTreeMap::new();
    loop {
        match nodes(&Kubectl::new(&options), namespace.as_deref()).await {
            Err(error) => {
                if to.send(Heard::Blind(error.to_string())).await.is_err() {
                    return;
                }
            }
            Ok(nodes) => {
                let mut news = Vec::new();
                if nodes.len() > NODES {
                    news.push(Heard::TooMany(nodes.len()));
                }
                let (gone, new) = turnover(&following, &nodes);
                for node in gone {
                    following.remove(&node);
                    news.push(Heard::Gone(node));
                }
                for node in new {
                    let task = follow(Arc::clone(&options), Arc::clone(&node), Arc::clone(&path), to.clone());
                    following.insert(node, Task(tokio::spawn(task)));
                }
                for news in news {
                    if to.send(news).await.is_err() {
                        return;
                    }
                }
            }
        }
        sleep(LOOK).await;
    }
}

/// Whom to follow no more, and whom from now on: no more than may be, and who is followed stays so.
fn turnover<T>(following: &BTreeMap<Arc<str>, T>, nodes: &BTreeSet<String>) -> (Vec<Arc<str>>, Vec<Arc<str>>) {
    let gone: Vec<Arc<str>> = following
        .keys()
        .filter(|node| !nodes.contains(&***node))
        .cloned()
        .collect();
    let places = NODES.saturating_sub(following.len() - gone.len());
    let new = nodes
        .iter()
        .filter(|node| !following.contains_key(node.as_str()))
        .take(places)
        .map(|node| node.as_str().into())
        .collect();
    (gone, new)
}

/// The nodes that sessions are on.
async fn nodes(kubectl: &Kubectl<'_>, namespace: Option<&str>) -> Result<BTreeSet<String>, KubectlError> {
    let mut words = vec!["get", "sessions.understudy.dev", "-o", "json"];
    match namespace {
        Some(namespace) => words.extend(["--namespace", namespace]),
        None => words.push("--all-namespaces"),
    }
    let list = kubectl.object(&words).await?.unwrap_or_default();
    let sessions = cluster::items(&list).iter();
    let entries = sessions.flat_map(|session| session["status"]["nodes"].as_array().into_iter().flatten());
    Ok(entries.filter_map(|entry| cluster::text(&entry["node"])).collect())
}

/// Looks on at one agent, again and again, until nobody listens.
async fn follow(options: Arc<AskOptions>, node: Arc<str>, path: Arc<str>, to: mpsc::Sender<Heard>) {
    let mut pause = RETRY_FIRST;
    loop {
        let begun = Instant::now();
        let lost = listen(&options, &node, &path, &to).await;
        let Err(why) = lost else { return };
        if to.send(Heard::Lost(Arc::clone(&node), why.to_string())).await.is_err() {
            return;
        }
        if begun.elapsed() > LASTING {
            pause = RETRY_FIRST;
            continue;
        }
        sleep(pause).await;
        pause = (pause * 2).min(RETRY_LAST);
    }
}

/// Until it breaks off. That nobody listens any more is no error.
async fn listen(options: &AskOptions, node: &Arc<str>, path: &str, to: &mpsc::Sender<Heard>) -> Result<(), LostError> {
    if let Some(socket) = &options.socket {
        return pass_on(open_here(socket, path).await?, node, to).await;
    }
    let kubectl = Kubectl::new(options);
    let pods = cluster::agent_pods(&kubectl, options, Some(node)).await?;
    let pod = cluster::of_node(&pods, node).ok_or(LostError::NoAgent)?;
    let (lines, _forwarding) = kubectl.follow(node, &pod.facts.name, path).await?;
    pass_on(lines, node, to).await
}

async fn open_here(socket: &Path, path: &str) -> Result<Lines, LostError> {
    Ok(follow_socket(socket, path).await?)
}

async fn pass_on(mut lines: Lines, node: &Arc<str>, to: &mpsc::Sender<Heard>) -> Result<(), LostError> {
    if to.send(Heard::Up(Arc::clone(node))).await.is_err() {
        return Ok(());
    }
    while let Some(line) = lines.next().await? {
        let heard = match notice(&line) {
            Some(notice) => {
                if let Some(why) = notice.ended {
                    return Err(LostError::Ended(why));
                }
                Heard::Notice(Arc::clone(node), notice)
            }
            None => Heard::Line(Arc::clone(node), line),
        };
        if to.send(heard).await.is_err() {
            return Ok(());
        }
    }
    Err(LostError::Ended(
        "it ended: the agent stops, or another takes over".to_owned(),
    ))
}

/// A line in which an answer speaks of itself.
fn notice(line: &[u8]) -> Option<NoticeView> {
    #[derive(Deserialize)]
    struct Kind {
        kind: Option<String>,
    }
    let kind = serde_json::from_slice::<Kind>(line).ok()?.kind?;
    (kind == NoticeView::KIND).then(|| serde_json::from_slice(line).ok())?
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(r#"{"kind":"Notice","node":"box","omitted":3}"#, Some(3))]
    #[case(r#"{"kind":"Event","node":"box"}"#, None)]
    #[case(r#"{"node":"box","version":"0.1.0","sessions":[]}"#, None)]
    #[case("{", None)]
    fn notices_are_told_from_the_rest(#[case] line: &str, #[case] omitted: Option<u64>) {
        assert_eq!(notice(line.as_bytes()).map(|notice| notice.omitted), omitted);
    }

    #[test]
    fn who_is_followed_stays_so_and_there_is_an_end() {
        let name = |number: usize| format!("node-{number:03}");
        let following: BTreeMap<Arc<str>, usize> = [5, 90].map(|number| (name(number).into(), number)).into();
        let nodes: BTreeSet<String> = (0..40).map(name).collect();
        let (gone, new) = turnover(&following, &nodes);
        assert_eq!(gone, [Arc::from("node-090")]);
        assert_eq!(new.len(), NODES - 1);
        assert!(!new.contains(&"node-005".into()));
    }
}
