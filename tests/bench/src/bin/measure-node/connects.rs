//! What the kernel's programs add to a connect: to that of a pod that is tagged, and to those of everybody else.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::Value;
use understudy_tests::node::{
    Agent, Command, LightPods, Node, Pod, PodSpec, Running, Session,
    network::{ENDPOINT_V4, SERVICE_V4, SERVICE_V6},
};

use super::{
    programs::{Programs, Run, Runs, float},
    stage,
};

/// An address where something listens that isn't the API server's.
const OTHER: SocketAddr = SocketAddr::new(ENDPOINT_V4.ip(), 7443);
/// How many pods are tagged in the second round.
const MANY: usize = 1000;
/// Connects in a slice.
const SLICE: u32 = 4000;

/// What a kind of connect cost. Of every connection both ends are on the node, and counted.
#[derive(Debug, Serialize)]
pub(crate) struct Cost {
    /// How many pods are tagged.
    tagged_pods: usize,
    /// Who connects: a process of a pod that is tagged, of one that isn't, of the node's own in the pods' tree of
    /// cgroups, or outside of it.
    who: &'static str,
    /// To what.
    to: &'static str,
    /// How many did, in all slices.
    connects: u32,
    /// How long programs ran for one connection, in nanoseconds, from the connect to the close at both ends, and with what
    /// counting took of each run, which is less for runs that follow each other than [`Cost::counting_ns`]. The median of
    /// the slices.
    ns_per_connect: f64,
    /// The least of the slices.
    least: f64,
    /// The most of the slices.
    most: f64,
    /// How long the program of the connect itself ran, in nanoseconds, without what counting took of it: the median of
    /// the slices.
    connect_program_ns: f64,
    /// The least of the slices.
    connect_program_least: f64,
    /// The most of the slices.
    connect_program_most: f64,
    /// What counting takes of a run at the connect, in nanoseconds.
    counting_ns: f64,
    /// By program.
    programs: BTreeMap<&'static str, Program>,
    /// Of a hundred connects that were seen, how many were others' on the machine: what they cost is in the figures.
    strangers_percent: f64,
}

/// What one program did.
#[derive(Debug, Serialize)]
struct Program {
    runs_per_connect: f64,
    /// With what counting took of it.
    ns_per_run: f64,
}

/// Who connects, and to what.
struct Kind {
    who: &'static str,
    to: &'static str,
    address: SocketAddr,
}

/// A node with a tagged pod, one that isn't, and somebody to connect to.
struct Scene {
    agent: Agent,
    _server: Running,
    tagged: Pod,
    untagged: Pod,
    outside: SocketAddr,
    node: Node,
}

pub(crate) async fn measure(quick: bool) -> Result<Vec<Cost>> {
    let slices = if quick { 3 } else { 9 };
    let scene = Scene::set().await?;
    let programs = Programs::pinned(&scene.node.pin_dir(), scene.node.cgroup_root())?;
    let mut figures = scene.round(&programs, 1, slices).await?;
    let _crowd = scene.tag(MANY - 1).await?;
    figures.extend(scene.round(&programs, MANY, slices).await?);
    Ok(figures)
}

impl Scene {
    async fn set() -> Result<Self> {
        let node = Node::new()?;
        let tagged = node.pod(PodSpec::named("tagged"))?;
        let untagged = node.pod(PodSpec::named("untagged"))?;
        let session = Session::named("bench", "one").acting_as(&node.accounts().viewer);
        node.sessions().write(&session.for_pod(&tagged))?;
        let directory = node.directory().join("upstream");
        node.cluster_ca().api_server_identity()?.write(&directory)?;
        fs::write(directory.join("token"), &node.accounts().agent.token)?;
        let mut command = node.control_plane_command(stage::beside("upstream")?)?;
        for address in [SERVICE_V4, SERVICE_V6, OTHER] {
            command = command.arg("--listen").arg(address.to_string());
        }
        for (option, file) in [
            ("--cert", "tls.crt"),
            ("--key", "tls.key"),
            ("--token-file", "token"),
            ("--control", "control.sock"),
        ] {
            command = command.arg(option).arg(directory.join(file));
        }
        let mut server = command.spawn()?;
        server.stdout_until(|text| text.contains("ready")).await?;
        Ok(Self {
            agent: stage::agent(&node).await?,
            _server: server,
            tagged,
            untagged,
            outside: listen()?,
            node,
        })
    }

    /// Tags so many more.
    async fn tag(&self, pods: usize) -> Result<LightPods> {
        let mut crowd = stage::crowd(&self.node, "crowd", pods)?;
        let after = self.agent.log().len();
        crowd.appear()?;
        stage::last_enrolled(&self.agent, pods, after).await?;
        Ok(crowd)
    }

    async fn round(&self, programs: &Programs, tagged_pods: usize, slices: usize) -> Result<Vec<Cost>> {
        let load = stage::beside("load")?;
        let kinds = [
            ("tagged", "the API server", SERVICE_V4),
            ("tagged", "the API server, IPv6", SERVICE_V6),
            ("tagged", "elsewhere", OTHER),
            ("untagged", "the API server", SERVICE_V4),
            ("untagged", "the API server, IPv6", SERVICE_V6),
            ("untagged", "elsewhere", OTHER),
            ("node", "elsewhere", OTHER),
            ("outside", "loopback", self.outside),
        ];
        let kinds = kinds.map(|(who, to, address)| Kind { who, to, address });
        let mut taken: Vec<Vec<(u32, Runs)>> = kinds.iter().map(|_| Vec::new()).collect();
        // Slices of all kinds in turn, so that what disturbs the machine disturbs none alone.
        for _ in 0..slices {
            for (kind, taken) in kinds.iter().zip(&mut taken) {
                taken.push(self.slice(programs, kind, &load).await?);
            }
        }
        let nothing = taken.iter().flatten().map(|(_, runs)| runs.nothing);
        let counting = nothing.fold(Run::default(), Run::and).each();
        let figures = kinds.iter().zip(taken);
        figures
            .map(|(kind, slices)| sum_up(tagged_pods, kind, &slices, counting))
            .collect()
    }

    async fn slice(&self, programs: &Programs, kind: &Kind, load: &PathBuf) -> Result<(u32, Runs)> {
        let command = match kind.who {
            "tagged" => self.tagged.command(load),
            "untagged" => self.untagged.command(load),
            "node" => self.node.command(load)?,
            _ => {
                let before = programs.runs()?;
                let mut outside = tokio::process::Command::new(load);
                outside.args([
                    "connects",
                    "--to",
                    &kind.address.to_string(),
                    "--count",
                    &SLICE.to_string(),
                ]);
                let output = outside.output().await?;
                ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                return Ok((SLICE, programs.runs()?.since(&before)));
            }
        };
        let before = programs.runs()?;
        let connects = connect(command, kind.address).await?;
        Ok((connects, programs.runs()?.since(&before)))
    }
}

async fn connect(command: Command, to: SocketAddr) -> Result<u32> {
    let command = command.args(["connects", "--to", &to.to_string(), "--count", &SLICE.to_string()]);
    let printed: Value = serde_json::from_str(&command.stdout().await?)?;
    let connects = printed["connects"].as_u64().context("how many connects")?;
    Ok(u32::try_from(connects)?)
}

/// A listener outside the box, on the machine's loopback, which takes whatever comes until the program ends.
fn listen() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    thread::Builder::new()
        .name("listener".to_owned())
        .spawn(move || listener.incoming().for_each(drop))?;
    Ok(address)
}

fn sum_up(tagged_pods: usize, kind: &Kind, slices: &[(u32, Runs)], counting: f64) -> Result<Cost> {
    let own = if kind.address.is_ipv4() { "connect4" } else { "connect6" };
    let mut per_connect = Vec::new();
    let mut connect_program = Vec::new();
    let mut connects = 0;
    let mut totals: BTreeMap<&'static str, Run> = BTreeMap::new();
    for (number, runs) in slices {
        connects += number;
        per_connect.push(runs.total().nanoseconds() / f64::from(*number));
        for (name, run) in &runs.programs {
            let total = totals.entry(name).or_default();
            *total = total.and(*run);
            if *name == own {
                connect_program.push((run.each() - counting).max(0.0));
            }
        }
    }
    let seen = totals.get(own).map_or(0, |run| run.count);
    let strangers = seen.saturating_sub(u64::from(connects));
    let (least, ns_per_connect, most) = spread(per_connect)?;
    let (connect_program_least, connect_program_ns, connect_program_most) = spread(connect_program)?;
    Ok(Cost {
        tagged_pods,
        who: kind.who,
        to: kind.to,
        connects,
        ns_per_connect,
        least,
        most,
        connect_program_ns,
        connect_program_least,
        connect_program_most,
        counting_ns: counting,
        programs: totals
            .into_iter()
            .map(|(name, run)| {
                let program = Program {
                    runs_per_connect: float(run.count) / f64::from(connects),
                    ns_per_run: run.each(),
                };
                (name, program)
            })
            .collect(),
        strangers_percent: 100.0 * float(strangers) / float(seen.max(1)),
    })
}

/// The least, the median and the most.
fn spread(mut figures: Vec<f64>) -> Result<(f64, f64, f64)> {
    figures.sort_unstable_by(f64::total_cmp);
    let median = *figures.get(figures.len() / 2).context("a slice")?;
    let (first, last) = (figures.first(), figures.last());
    Ok((*first.context("a slice")?, median, *last.context("a slice")?))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn slice(connects: u32, runs: u64, nanoseconds: u64) -> (u32, Runs) {
        let run = Run {
            count: runs,
            time: Duration::from_nanos(nanoseconds),
        };
        let runs = Runs {
            programs: [("connect4", run), ("socket_release", run)].into(),
            nothing: Run::default(),
        };
        (connects, runs)
    }

    #[test]
    fn slices_are_summed_up_by_their_median_and_strangers_show() {
        let kind = Kind {
            who: "tagged",
            to: "the API server",
            address: SERVICE_V4,
        };
        let slices = [slice(10, 10, 1000), slice(10, 10, 2000), slice(10, 20, 9000)];
        let figures = sum_up(1, &kind, &slices, 50.0).unwrap();
        let close = |is: f64, wanted: f64| assert!((is - wanted).abs() < 1e-6, "{is} in place of {wanted}");
        close(figures.ns_per_connect, 400.0);
        close(figures.least, 200.0);
        close(figures.most, 1800.0);
        close(figures.connect_program_ns, 150.0);
        close(figures.connect_program_most, 400.0);
        close(figures.programs["connect4"].runs_per_connect, 40.0 / 30.0);
        close(figures.programs["connect4"].ns_per_run, 300.0);
        close(figures.strangers_percent, 25.0);
    }
}
