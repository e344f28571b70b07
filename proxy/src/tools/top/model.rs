//! What is known of sessions: what agents said last, and what follows of what they said before.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::Instant;

use crate::{
    operator::view::{Bucket, PodStateView, PodView, SessionView, SessionsView},
    sessions::spread::percentile,
    tools::live::Heard,
};

/// What agents said.
#[derive(Debug, Default)]
pub(super) struct Model {
    /// The one namespace that is looked at.
    namespace: Option<String>,
    nodes: BTreeMap<Arc<str>, Node>,
    /// Why it isn't known which nodes there are.
    blind: Option<String>,
    /// How many there are, where not all are looked on at.
    too_many: Option<usize>,
}

#[derive(Debug, Default)]
struct Node {
    now: Option<Look>,
    before: Option<Look>,
    lost: Option<String>,
}

#[derive(Debug, Clone)]
struct Look {
    at: Instant,
    view: SessionsView,
}

/// A session's name.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) namespace: String,
    pub(super) name: String,
}

/// A session, over all nodes.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Row {
    pub(super) key: Key,
    pub(super) phase: String,
    pub(super) acts_as: String,
    pub(super) enrolled: usize,
    pub(super) pods: usize,
    pub(super) nodes: BTreeSet<String>,
    /// Requests a second; nothing until there were two looks.
    pub(super) rate: Option<f64>,
    /// Of these, answered with 400 or above.
    pub(super) failures: Option<f64>,
    /// What agents add to a request, of those since the look before: half take no longer, and 99 of 100.
    pub(super) p50: Option<Duration>,
    pub(super) p99: Option<Duration>,
    pub(super) streams: usize,
    pub(super) expires: Option<Timestamp>,
}

/// A pod of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodRow {
    pub(super) node: String,
    pub(super) pod: PodView,
}

/// What came under a session between two looks.
#[derive(Debug, Default)]
struct Since {
    rate: f64,
    failures: f64,
    added: Vec<Bucket>,
}

impl Model {
    pub(super) fn new(namespace: Option<String>) -> Self {
        Self {
            namespace,
            ..Self::default()
        }
    }

    /// Something is heard of agents.
    pub(super) fn heard(&mut self, heard: Heard, at: Instant) {
        match heard {
            Heard::Up(node) => {
                self.nodes.entry(node).or_default().lost = None;
                self.blind = None;
            }
            Heard::Line(node, line) => {
                let node = self.nodes.entry(node).or_default();
                match serde_json::from_slice(&line) {
                    Ok(view) => {
                        node.before = node.now.replace(Look { at, view });
                        node.lost = None;
                    }
                    Err(error) => node.lost = Some(format!("it says what isn't understood ({error})")),
                }
            }
            Heard::Lost(node, why) => {
                let node = self.nodes.entry(node).or_default();
                node.lost = Some(why);
                // What it does now isn't known.
                node.before = None;
            }
            Heard::Gone(node) => drop(self.nodes.remove(&node)),
            Heard::Blind(why) => self.blind = Some(why),
            Heard::TooMany(nodes) => self.too_many = Some(nodes),
            Heard::Notice(..) => {}
        }
    }

    /// What isn't as it should be, in words; the worst first.
    pub(super) fn troubles(&self) -> Vec<String> {
        let blind = self.blind.clone();
        let lost = self
            .nodes
            .iter()
            .filter_map(|(name, node)| Some(format!("{name}: {}", node.lost.as_ref()?)));
        let many = self
            .too_many
            .map(|nodes| format!("sessions are on {nodes} nodes, and not all are looked on at: name a namespace"));
        blind.into_iter().chain(lost).chain(many).collect()
    }

    /// How many agents answer, of how many.
    pub(super) fn agents(&self) -> (usize, usize) {
        let answering = self
            .nodes
            .values()
            .filter(|node| node.lost.is_none() && node.now.is_some());
        (answering.count(), self.nodes.len())
    }

    /// Whether anything was heard at all.
    pub(super) fn is_silent(&self) -> bool {
        self.nodes.values().all(|node| node.now.is_none())
    }

    /// The sessions, by name.
    pub(super) fn rows(&self) -> Vec<Row> {
        let mut rows: BTreeMap<Key, (Row, Vec<Bucket>)> = BTreeMap::new();
        for (name, node) in &self.nodes {
            let Some(look) = &node.now else { continue };
            for session in look.view.sessions.iter().filter(|session| self.is_wanted(session)) {
                let key = Key {
                    namespace: session.namespace.clone(),
                    name: session.name.clone(),
                };
                let (row, added) = rows.entry(key.clone()).or_default();
                row.key = key;
                row.add(
                    session,
                    if look.view.node.is_empty() {
                        name
                    } else {
                        &look.view.node
                    },
                );
                if let Some(since) = node.since(session) {
                    row.rate = Some(row.rate.unwrap_or_default() + since.rate);
                    row.failures = Some(row.failures.unwrap_or_default() + since.failures);
                    merge(added, &since.added);
                }
            }
        }
        let with_latency = |(mut row, added): (Row, Vec<Bucket>)| {
            row.p50 = percentile(&added, 50);
            row.p99 = percentile(&added, 99);
            row
        };
        rows.into_values().map(with_latency).collect()
    }

    /// A session's pods, by name.
    pub(super) fn pods(&self, key: &Key) -> Vec<PodRow> {
        let looks = self.nodes.values().filter_map(|node| node.now.as_ref());
        let mut pods: Vec<PodRow> = looks
            .flat_map(|look| {
                let sessions = look.view.sessions.iter();
                let of = sessions.filter(|session| (&session.namespace, &session.name) == (&key.namespace, &key.name));
                of.flat_map(|session| &session.pods).map(|pod| PodRow {
                    node: look.view.node.clone(),
                    pod: pod.clone(),
                })
            })
            .collect();
        pods.sort_by(|one, other| (&one.pod.name, &one.node).cmp(&(&other.pod.name, &other.node)));
        pods
    }

    fn is_wanted(&self, session: &SessionView) -> bool {
        self.namespace
            .as_ref()
            .is_none_or(|wanted| *wanted == session.namespace)
    }
}

impl Row {
    fn add(&mut self, session: &SessionView, node: &str) {
        // One node may know of an end that another hasn't heard of: what is in force anywhere is.
        if self.phase.is_empty() || session.phase == "Active" {
            self.phase.clone_from(&session.phase);
        }
        if let Some(acts_as) = &session.acts_as {
            self.acts_as.clone_from(acts_as);
        } else if self.acts_as.is_empty() {
            self.acts_as = session.method.clone().unwrap_or_default();
        }
        let enrolled = session.pods.iter().filter(|pod| pod.state == PodStateView::Enrolled);
        self.enrolled += enrolled.count();
        self.pods += session.pods.len();
        self.nodes.insert(node.to_owned());
        self.streams += session.streams;
        self.expires = self.expires.max(session.expires_at);
    }
}

impl Node {
    /// What came under a session since the look before; nothing where there was none, or where the counts began anew.
    fn since(&self, session: &SessionView) -> Option<Since> {
        let (now, before) = (self.now.as_ref()?, self.before.as_ref()?);
        let known = before.view.sessions.iter().find(|known| {
            (&known.namespace, &known.name, known.since) == (&session.namespace, &session.name, session.since)
        })?;
        let seconds = now.at.duration_since(before.at).as_secs_f64();
        if seconds <= 0.0 {
            return None;
        }
        let rate = |now: u64, before: u64| {
            let count = u32::try_from(now.checked_sub(before)?).unwrap_or(u32::MAX);
            Some(f64::from(count) / seconds)
        };
        let mut added = session.added.clone();
        for (bucket, before) in added.iter_mut().zip(&known.added) {
            bucket.count = bucket.count.saturating_sub(before.count);
        }
        Some(Since {
            rate: rate(session.requests, known.requests)?,
            failures: rate(session.failures, known.failures)?,
            added,
        })
    }
}

/// Adds counts of the same bounds; those of another release's are left out.
fn merge(into: &mut Vec<Bucket>, from: &[Bucket]) {
    if into.is_empty() {
        *into = from.to_vec();
        return;
    }
    let bounds = |buckets: &[Bucket]| buckets.iter().map(|bucket| bucket.up_to).collect::<Vec<_>>();
    if bounds(into) == bounds(from) {
        for (bucket, more) in into.iter_mut().zip(from) {
            bucket.count += more.count;
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
