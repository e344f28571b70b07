//! What a run says: as data, as tables for a terminal and for the docs, and as a chart.

mod chart;
mod docs;
mod figures;
mod table;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::{
    goals::{NOISE, Outcome},
    measures::{Better, MEASURES, Measure, Quantity},
    peers::Peer,
    run::{Samples, estimate, ratio},
    statistics::Estimate,
};

pub use chart::{CHARTS, Chart, chart};
pub use docs::{BEGIN, END, page};
pub use figures::figure;
pub use table::{goals, markdown, remarks, terminal};

/// A run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// When it began.
    pub date: String,
    /// What it ran on.
    pub machine: Machine,
    /// What ran, by peer, as each says it.
    pub versions: BTreeMap<String, String>,
    /// Peers that were asked for and couldn't be had, and why.
    pub missing: BTreeMap<String, String>,
    /// Whether it was a short run.
    pub quick: bool,
    /// How long a slice was, in seconds.
    pub slice_seconds: u32,
    /// Understudy against itself: what a ratio of 1 looks like here.
    pub noise: Option<Estimate>,
    /// How many requests the upstream answers in a second of its own processor time, less whatever stands before it.
    pub upstream_per_cpu_second: Option<Estimate>,
    /// The rate at which latency was measured under load.
    pub half_load: Option<f64>,
    /// What was measured.
    pub measures: Vec<Measured>,
    /// The node's own side, as `measure-node` says it.
    pub node: Option<Value>,
    /// The goals.
    pub goals: Vec<Outcome>,
}

/// What a run ran on.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// How many of them.
    pub processors: usize,
    /// The kernel's version.
    pub kernel: String,
    /// Whether it counts instructions.
    pub instructions: bool,
}

/// What came of a measure.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// Its name.
    pub id: &'static str,
    /// In words.
    pub title: String,
    /// By quantity.
    pub quantities: Vec<Column>,
}

/// What came of a quantity.
#[derive(Debug, Clone, Serialize)]
pub struct Column {
    /// Its name.
    pub id: &'static str,
    /// In words.
    pub title: &'static str,
    /// Which way is good.
    pub better: Better,
    /// By target, in the order in which they were started.
    pub rows: Vec<Row>,
}

/// What came of a target.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Who.
    pub peer: String,
    /// The quantity.
    pub value: Option<Estimate>,
    /// What it has over direct, where that is asked.
    pub added: Option<Estimate>,
    /// Understudy's quantity as so many times this one's.
    pub understudy: Option<Estimate>,
    /// How many slices were void.
    pub void: usize,
    /// Why the first of them was.
    pub why_void: Option<String>,
}

impl Report {
    /// Whether Understudy differs from itself by more than what a verdict allows.
    #[must_use]
    pub fn is_too_noisy(&self) -> bool {
        self.noise
            .is_some_and(|noise| noise.spread() > NOISE || (noise.median - 1.0).abs() > NOISE)
    }

    /// A row, by the names of measure, quantity and target.
    #[must_use]
    pub fn row(&self, measure: &str, quantity: &str, peer: &str) -> Option<&Row> {
        let measured = self.measures.iter().find(|measured| measured.id == measure)?;
        let column = measured.quantities.iter().find(|column| column.id == quantity)?;
        column.rows.iter().find(|row| row.peer == peer)
    }
}

/// What came of a measure with these targets.
#[must_use]
pub fn measured(samples: &Samples, peers: &[Peer]) -> Measured {
    let measure = samples.measure;
    let id = MEASURES.iter().find_map(|(id, of)| (*of == measure).then_some(*id));
    Measured {
        id: id.unwrap_or_default(),
        title: measure.title(),
        quantities: measure
            .quantities()
            .iter()
            .map(|quantity| column(samples, measure, *quantity, peers))
            .collect(),
    }
}

fn column(samples: &Samples, measure: Measure, quantity: Quantity, peers: &[Peer]) -> Column {
    let ours = samples.of(Peer::Understudy, quantity.id);
    let row = |peer: &Peer| {
        let theirs = samples.of(*peer, quantity.id);
        Row {
            peer: peer.to_string(),
            value: estimate(&theirs),
            added: (measure.is_added_to_direct() && *peer != Peer::Direct)
                .then(|| estimate(&samples.added(*peer, quantity.id)))
                .flatten(),
            understudy: (*peer != Peer::Understudy).then(|| ratio(&ours, &theirs)).flatten(),
            void: samples.void(*peer),
            why_void: samples.why_void(*peer).map(str::to_owned),
        }
    };
    Column {
        id: quantity.id,
        title: quantity.title,
        better: quantity.better,
        rows: peers.iter().filter(|peer| measure.fits(**peer)).map(row).collect(),
    }
}

/// Tells the person at the terminal what is going on.
pub fn progress(message: impl AsRef<str>) {
    #[expect(clippy::print_stderr, reason = "progress is for the person at the terminal")]
    {
        eprintln!("{}", message.as_ref());
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{goals::GOALS, measures::Protocol, run::Sample};

    /// A run of one measure, in which nginx is void once.
    pub(crate) fn report() -> Report {
        let mut all = Vec::new();
        for round in 0..16_u32 {
            let drift = f64::from(round % 4) * 100.0;
            for (peer, base) in [(Peer::Understudy, 40_000.0), (Peer::Nginx, 25_000.0)] {
                let fine = vec![("per-second", 15_000.0), ("per-cpu-second", base + drift)];
                let void = peer == Peer::Nginx && round == 3;
                all.push(Sample {
                    peer,
                    round: round as usize,
                    outcome: if void {
                        Err("wrk saw a 502".to_owned())
                    } else {
                        Ok(fine)
                    },
                });
            }
        }
        let samples = Samples {
            measure: Measure::Requests(Protocol::Http1, 128, 1),
            samples: all,
        };
        Report {
            date: "2026-11-22T09:00:00Z".to_owned(),
            machine: Machine {
                processor: "a processor".to_owned(),
                processors: 2,
                kernel: "6.18".to_owned(),
                instructions: false,
            },
            versions: [("nginx".to_owned(), "nginx/1.22.1".to_owned())].into(),
            missing: [("envoy".to_owned(), "no wheel of it for this machine".to_owned())].into(),
            quick: false,
            slice_seconds: 3,
            noise: Estimate::of(&[1.0, 1.01, 0.99]),
            upstream_per_cpu_second: None,
            half_load: None,
            measures: vec![measured(&samples, &[Peer::Understudy, Peer::Nginx])],
            node: None,
            goals: GOALS
                .iter()
                .map(|goal| goal.judge((goal.measure == "h1-128").then_some(&samples)))
                .collect(),
        }
    }

    #[test]
    fn rows_hold_the_medians_and_the_ratio_and_what_was_void() {
        let report = report();
        let nginx = report.row("h1-128", "per-cpu-second", "nginx").unwrap();
        assert_eq!((nginx.void, nginx.why_void.as_deref()), (1, Some("wrk saw a 502")));
        let times = nginx.understudy.unwrap();
        assert!((times.median - 1.6).abs() < 0.01 && times.samples == 15, "{times:?}");
        let ours = report.row("h1-128", "per-cpu-second", "understudy").unwrap();
        assert!(ours.understudy.is_none() && ours.void == 0);
        assert!(!report.is_too_noisy());
    }

    #[test]
    fn a_run_that_differs_from_itself_is_too_noisy() {
        let mut report = report();
        report.noise = Estimate::of(&[0.8, 1.0, 1.2, 1.3, 0.7]);
        assert!(report.is_too_noisy());
        report.noise = Estimate::of(&[1.1, 1.1, 1.1]);
        assert!(report.is_too_noisy(), "it agrees with itself, on the wrong figure");
    }
}
