//! A run from its options to its report.

use std::{collections::BTreeMap, fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use serde_json::Value;
use understudy_tests::node::binaries;

use crate::{
    clients,
    goals::{GOALS, Goal, Outcome},
    measures::{self, MEASURES, Measure, Protocol, Terms},
    peers::{Executables, Peer},
    process::CpuTime,
    report::{Machine, Report, figure, measured, progress},
    run::{Sample, Samples, estimate, ratio, turns},
    stage::{Stage, Target, printed},
    statistics::Estimate,
};

/// Who is measured where nobody says.
pub const PEERS: [Peer; 8] = [
    Peer::Direct,
    Peer::Relay,
    Peer::Nginx,
    Peer::Haproxy,
    Peer::HaproxyH2,
    Peer::Envoy,
    Peer::Go,
    Peer::Understudy,
];
/// What a short run measures.
const QUICK: [&str; 8] = [
    "h1-1",
    "h1-128",
    "h2-16x8",
    "latency-1",
    "handshakes",
    "list",
    "watches-h2",
    "fanout",
];
/// What two builds are compared by.
const COMPARED: [&str; 3] = ["h1-1", "h1-128", "h2-16x8"];
/// The measure of the node's own side, which is no slices.
const NODE: &str = "node";
/// After so many void slices of a measure and no good one, a target isn't asked again.
const HOPELESS: usize = 2;

/// What to run.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// In a few minutes, with short slices and few of them.
    pub quick: bool,
    /// These measures; all where there are none.
    pub only: Vec<String>,
    /// These peers beside Understudy; all where there are none.
    pub peers: Vec<Peer>,
    /// How long a slice lasts, in seconds.
    pub seconds: Option<u32>,
    /// How many rounds there are for what goals are about.
    pub rounds: Option<usize>,
    /// Where programs are.
    pub executables: Executables,
    /// Peers that set-up couldn't bring, and why.
    pub missing: BTreeMap<String, String>,
}

/// How many rounds a target has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rounds {
    /// For what goals are about.
    goal: usize,
    /// For the rest.
    rest: usize,
}

impl Options {
    fn compares(&self) -> bool {
        self.executables.against.is_some()
    }

    fn measures(&self) -> Result<Vec<&str>> {
        let chosen: Vec<&str> = if !self.only.is_empty() {
            self.only.iter().map(String::as_str).collect()
        } else if self.compares() {
            COMPARED.to_vec()
        } else if self.quick {
            QUICK.to_vec()
        } else {
            MEASURES.iter().map(|(name, _)| *name).chain([NODE]).collect()
        };
        for name in &chosen {
            if *name != NODE {
                measures::named(name)?;
            }
        }
        Ok(chosen)
    }

    fn peers(&self) -> Vec<Peer> {
        if self.compares() {
            return vec![Peer::Understudy, Peer::Against];
        }
        let mut peers = if self.peers.is_empty() {
            PEERS.to_vec()
        } else {
            self.peers.clone()
        };
        if !peers.contains(&Peer::Understudy) {
            peers.push(Peer::Understudy);
        }
        peers
    }

    fn rounds(&self) -> Rounds {
        match (self.rounds, self.quick) {
            (Some(rounds), _) => Rounds {
                goal: rounds,
                rest: rounds,
            },
            (None, _) if self.compares() => Rounds { goal: 8, rest: 8 },
            (None, true) => Rounds { goal: 3, rest: 1 },
            (None, false) => Rounds { goal: 15, rest: 2 },
        }
    }
}

/// Runs it.
///
/// # Errors
/// The box can't be made, or Understudy doesn't run. That a peer doesn't is in the report.
pub async fn run(options: &Options) -> Result<Report> {
    let date = Timestamp::now().to_string();
    let chosen = options.measures()?;
    let mut missing = options.missing.clone();
    let stage = Stage::new().await?;
    let mut targets = start(&stage, options, &mut missing).await?;
    let peers: Vec<Peer> = targets.iter().map(|target| target.peer).collect();
    let mut terms = Terms {
        seconds: options.seconds.unwrap_or(if options.quick { 1 } else { 3 }),
        quick: options.quick,
        half_load: 0.0,
        instructions: counts_instructions(),
    };

    let mut upstream_per_cpu_second = None;
    let mut noise = None;
    if chosen.iter().any(|name| *name != NODE) {
        upstream_per_cpu_second = upstream(&targets, terms).await?;
        if !options.compares() {
            noise = against_itself(&mut targets, options.rounds(), terms).await;
        }
    }
    if chosen.contains(&"latency-half") {
        terms.half_load = measures::half_load(&targets, 2).await;
    }
    let mut all: Vec<(&str, Samples)> = Vec::new();
    for name in chosen.iter().filter(|name| **name != NODE) {
        let measure = measures::named(name)?;
        let rounds = rounds(name, measure, &peers, options);
        all.push((name, slices(name, measure, &mut targets, &rounds, terms).await));
    }
    // The node's own side has both processors to itself: what was started here is ended first.
    drop(targets);
    let agent = options.executables.understudy.as_deref();
    let node = if chosen.contains(&NODE) {
        Some(measures::node::measure(agent, options.quick)?)
    } else {
        None
    };
    let report = Report {
        date,
        machine: machine(terms.instructions),
        versions: versions(&peers, &options.executables),
        missing,
        quick: options.quick,
        slice_seconds: terms.seconds,
        noise,
        upstream_per_cpu_second,
        half_load: (terms.half_load > 0.0).then_some(terms.half_load),
        measures: all.iter().map(|(_, samples)| measured(samples, &peers)).collect(),
        goals: goals(options, &all, node.as_ref()),
        node,
    };
    Ok(report)
}

fn goals(options: &Options, all: &[(&str, Samples)], node: Option<&Value>) -> Vec<Outcome> {
    if options.compares() {
        return Vec::new();
    }
    let samples = |name: &str| all.iter().find_map(|(id, samples)| (*id == name).then_some(samples));
    let judge = |goal: &Goal| match goal.measure {
        NODE => goal.outcome(node.and_then(|node| measures::node::figure(node, goal.quantity))),
        measure => goal.judge(samples(measure)),
    };
    GOALS.iter().map(judge).collect()
}

/// Starts whoever can be had, Understudy without fail.
async fn start(stage: &Stage, options: &Options, missing: &mut BTreeMap<String, String>) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    for peer in options.peers() {
        if missing.contains_key(&peer.to_string()) {
            continue;
        }
        let started = if peer == Peer::Against {
            // An agent holds the kernel side of its node: another build has a node of its own.
            let other = Stage::new().await?;
            Target::start(&other, peer, &options.executables).await
        } else {
            Target::start(stage, peer, &options.executables).await
        };
        match started {
            Ok(target) => {
                // Whoever can't answer well at all isn't measured.
                match check(&target).await {
                    Ok(()) => targets.push(target),
                    Err(error) if !peer.is_understudy() => {
                        missing.insert(peer.to_string(), format!("{error:#}"));
                    }
                    Err(error) => return Err(error.context(format!("{peer} doesn't answer as it should"))),
                }
            }
            Err(error) if !peer.is_understudy() => {
                missing.insert(peer.to_string(), format!("{error:#}"));
            }
            Err(error) => return Err(error.context(format!("{peer} doesn't start"))),
        }
    }
    for (peer, why) in missing {
        progress(format!("MISSING: {peer}: {why}"));
    }
    Ok(targets)
}

/// A list over HTTP/1.1 whose every byte is looked at, and requests over HTTP/2.
async fn check(target: &Target) -> Result<()> {
    let limit = std::time::Duration::from_secs(30);
    let refused = target.stage.refused().await?;
    let list = target.load("list").args(["--bytes", "1000000", "--seconds", "1"]);
    printed(list, limit).await?;
    let one = target.load("latency").args(["--seconds", "1", "--protocol", "http2"]);
    printed(one, limit).await?;
    let now = target.stage.refused().await?;
    ensure!(now <= refused, "the upstream refused what {} sent", target.peer);
    Ok(())
}

/// What the upstream answers in a second of its own processor time, with whatever stands nearest before it.
async fn upstream(targets: &[Target], terms: Terms) -> Result<Option<Estimate>> {
    let target = targets.first().context("there is a target")?;
    let process = target.stage.upstream()?;
    let mut rates = Vec::new();
    for _ in 0..if terms.quick { 1 } else { 3 } {
        let before = CpuTime::of(process)?;
        let limit = std::time::Duration::from_mins(1);
        let report = printed(target.wrk(16, terms.seconds), limit).await;
        match report.and_then(|report| clients::wrk(&report)) {
            Ok(answers) => rates.push(answers.requests / CpuTime::of(process)?.since(&before).as_secs_f64()),
            Err(error) => progress(format!("the upstream alone: VOID: {error:#}")),
        }
    }
    Ok(Estimate::of(&rates))
}

/// A-B-B-A with Understudy as both.
async fn against_itself(targets: &mut [Target], rounds: Rounds, terms: Terms) -> Option<Estimate> {
    let ours = targets.iter_mut().find(|target| target.peer == Peer::Understudy)?;
    let measure = Measure::Requests(Protocol::Http1, 16, 1);
    let mut sides = [BTreeMap::new(), BTreeMap::new()];
    let rounds = rounds.goal.div_ceil(2);
    for round in 0..rounds {
        for side in turns(round, &[rounds; 2]) {
            match measure.slice(ours, terms).await {
                Ok(values) => {
                    let value = values.iter().find(|(id, _)| *id == "per-cpu-second");
                    sides[side].extend(value.map(|(_, value)| (round, *value)));
                }
                Err(error) => progress(format!("Understudy against itself: VOID: {error:#}")),
            }
        }
    }
    let noise = ratio(&sides[0], &sides[1]);
    if let Some(noise) = noise {
        progress(format!(
            "Understudy against itself: {} ({} to {})",
            figure(noise.median),
            figure(noise.low),
            figure(noise.high)
        ));
    }
    noise
}

/// How many rounds each target takes part in.
fn rounds(name: &str, measure: Measure, peers: &[Peer], options: &Options) -> Vec<usize> {
    let Rounds { goal, rest } = options.rounds();
    let about: Vec<_> = GOALS.iter().filter(|goal| goal.measure == name).collect();
    let in_pairs = about.iter().any(|goal| goal.peer().is_some());
    peers
        .iter()
        .map(|peer| {
            let named = about.iter().any(|goal| goal.peer() == Some(*peer));
            let counts = peer.is_understudy() || named || (*peer == Peer::Direct && measure.is_added_to_direct());
            match measure {
                _ if !measure.fits(*peer) => 0,
                // Memory hardly varies, and each takes long.
                Measure::Readers | Measure::Watches(_) | Measure::Idle if options.quick && !counts => 0,
                Measure::Readers | Measure::Watches(_) | Measure::Idle if options.rounds.is_none() => 1,
                // So does a fan: it is five slices' worth.
                Measure::FanOut if options.rounds.is_none() => {
                    let fewer = if options.quick { 1 } else { goal.div_ceil(3) };
                    if counts { fewer } else { usize::from(!options.quick) }
                }
                // Each slice is a pair of its own.
                Measure::BulkRecorded(_) | Measure::AuditCost if options.rounds.is_none() => {
                    if options.quick {
                        3
                    } else {
                        8
                    }
                }
                _ if in_pairs && counts => goal,
                _ => rest,
            }
        })
        .collect()
}

async fn slices(name: &str, measure: Measure, targets: &mut [Target], rounds: &[usize], terms: Terms) -> Samples {
    let mut samples = Samples {
        measure,
        samples: Vec::new(),
    };
    let most = rounds.iter().copied().max().unwrap_or_default();
    for round in 0..most {
        for place in turns(round, rounds) {
            let target = &mut targets[place];
            let peer = target.peer;
            let of_it = samples.samples.iter().filter(|sample| sample.peer == peer);
            if samples.void(peer) >= HOPELESS && samples.void(peer) == of_it.count() {
                continue;
            }
            let outcome = measure.slice(target, terms).await.map_err(|error| {
                let last = target
                    .last_words()
                    .map_or(String::new(), |words| format!("; it said: {words}"));
                format!("{error:#}{last}")
            });
            progress(said(name, measure, round, most, peer, &outcome));
            samples.samples.push(Sample { peer, round, outcome });
        }
    }
    conclude(measure, &samples);
    samples
}

fn said(
    name: &str,
    measure: Measure,
    round: usize,
    rounds: usize,
    peer: Peer,
    outcome: &Result<measures::Values, String>,
) -> String {
    let what = match outcome {
        Err(why) => format!("VOID: {why}"),
        Ok(values) => {
            let given = measure.quantities().iter().filter_map(|quantity| {
                let (_, value) = values.iter().find(|(id, _)| *id == quantity.id)?;
                Some(format!("{} {}", figure(*value), quantity.title))
            });
            given.collect::<Vec<_>>().join(", ")
        }
    };
    format!("{name} {}/{rounds} {peer:<11} {what}", round + 1)
}

/// Says how two builds compare, as soon as it is known.
fn conclude(measure: Measure, samples: &Samples) {
    for quantity in measure.quantities() {
        let (ours, theirs) = (
            samples.of(Peer::Understudy, quantity.id),
            samples.of(Peer::Against, quantity.id),
        );
        if let (Some(ratio), Some(ours), Some(theirs)) = (ratio(&ours, &theirs), estimate(&ours), estimate(&theirs)) {
            progress(format!(
                "{}, {}: {} against {}: {} times ({} to {})",
                measure.title(),
                quantity.title,
                figure(ours.median),
                figure(theirs.median),
                format_args!("{:.3}", ratio.median),
                format_args!("{:.3}", ratio.low),
                format_args!("{:.3}", ratio.high),
            ));
        }
    }
}

fn machine(instructions: bool) -> Machine {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown", |(_, name)| name.trim());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Machine {
        processor: processor.to_owned(),
        processors: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
        kernel: kernel.trim().to_owned(),
        instructions,
    }
}

fn counts_instructions() -> bool {
    let counted = Command::new("perf")
        .args(["stat", "--field-separator=,", "--event=instructions", "true"])
        .output();
    counted.is_ok_and(|output| clients::instructions(&String::from_utf8_lossy(&output.stderr)).is_some())
}

fn versions(peers: &[Peer], executables: &Executables) -> BTreeMap<String, String> {
    let mut executables = executables.clone();
    executables.understudy = executables.understudy.or_else(|| binaries::understudy().ok());
    peers
        .iter()
        .filter_map(|peer| {
            let start = peer.version(&executables)?;
            let output = Command::new(&start.program).args(&start.arguments).output().ok()?;
            let text = [output.stdout, output.stderr].concat();
            // Where it lies on this machine is nobody's business.
            let text = String::from_utf8_lossy(&text).replace(&*start.program.to_string_lossy(), &peer.to_string());
            let line = text.lines().map(str::trim).find(|line| !line.is_empty())?;
            Some((peer.to_string(), line.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_have_their_pairs_and_the_rest_has_fewer() {
        let options = Options::default();
        let peers = [Peer::Direct, Peer::Nginx, Peer::Envoy, Peer::Understudy];
        let rounds = |name| rounds(name, measures::named(name).unwrap(), &peers, &options);
        assert_eq!(rounds("h1-128"), [2, 15, 2, 15]);
        assert_eq!(rounds("h1-16"), [2, 2, 2, 2]);
        assert_eq!(rounds("latency-1"), [15, 15, 2, 15]);
        assert_eq!(rounds("watches-h1"), [0, 1, 1, 1], "direct has no memory of its own");
        assert_eq!(rounds("watches-h2"), [0, 0, 1, 1], "nginx can't open one");
        assert_eq!(rounds("bulk-recorded"), [0, 0, 0, 8], "nobody else records");
    }

    #[test]
    fn understudy_is_always_there_and_two_builds_are_alone() {
        let options = Options {
            peers: vec![Peer::Nginx],
            ..Options::default()
        };
        assert_eq!(options.peers(), [Peer::Nginx, Peer::Understudy]);
        let mut options = options;
        options.executables.against = Some("/a/build".into());
        assert_eq!(options.peers(), [Peer::Understudy, Peer::Against]);
        assert_eq!(options.measures().unwrap(), COMPARED);
    }

    #[test]
    fn only_what_there_is_can_be_chosen() {
        let only = |name: &str| Options {
            only: vec![name.to_owned()],
            ..Options::default()
        };
        assert_eq!(only("h1-1").measures().unwrap(), ["h1-1"]);
        assert_eq!(only("node").measures().unwrap(), ["node"]);
        assert!(only("h9-1").measures().is_err());
        let all = Options::default();
        assert!(QUICK.iter().all(|name| all.measures().unwrap().contains(name)));
    }
}
