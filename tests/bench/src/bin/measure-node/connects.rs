//! What the kernel's programs add to a connect: to that of a pod that is tagged, and to those of everybody else.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::Value;
use understudy_tests::node::{
    Agent, Command, LightPods, Node, Pod, PodSpec, Running, Session,
    network::{ENDPOINT_V4, SERVICE_V4, SERVICE_V6},
};

use super::{
    programs::{Programs, Run, Runs},
    stage,
};

/// An address where something listens that isn't the API server's.
const OTHER: SocketAddr = SocketAddr::new(ENDPOINT_V4.ip(), 7443);
/// How many pods are tagged in the second round.
const MANY: usize = 1000;
/// Connects in a slice.
const SLICE: u32 = 4000;

/// What a kind of connect cost.
#[derive(Debug, Serialize)]
pub(crate) struct Connects {
    /// How many pods are tagged.
    tagged_pods: usize,
    /// Who connects.
    who: &'static str,
    /// To what.
    to: &'static str,
    /// How many did, in all slices.
    connects: u32,
    /// How long programs ran for one, in nanoseconds: all of them, from the connect to the close. The median of the
    /// slices.
    ns_per_connect: f64,
    /// The least of the slices.
    least: f64,
    /// The most of the slices.
    most: f64,
    /// How long the connect's own program ran for one, in nanoseconds: the median of the slices.
    connect_program_ns: f64,
    /// By program.
    programs: BTreeMap<&'static str, Program>,
    /// Of a hundred connects that were seen, how many were others' on the machine: what they cost is in the figures.
    strangers_percent: f64,
}

/// What one program did.
#[derive(Debug, Serialize)]
struct Program {
    runs_per_connect: f64,
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

pub(crate) async fn measure(quick: bool) -> Result<Vec<Connects>> {
    let slices = if quick { 3 } else { 9 };
    let scene = Scene::set().await?;
    let programs = Programs::pinned(&scene.node.pin_dir())?;
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

    async fn round(&self, programs: &Programs, tagged_pods: usize, slices: usize) -> Result<Vec<Connects>> {
        let load = stage::beside("load")?;
        let kinds = [
            ("tagged pod", "API server", SERVICE_V4),
            ("tagged pod", "API server, IPv6", SERVICE_V6),
            ("tagged pod", "another address", OTHER),
            ("untagged pod", "API server", SERVICE_V4),
            ("untagged pod", "API server, IPv6", SERVICE_V6),
            ("untagged pod", "another address", OTHER),
            ("node's own process", "another address", OTHER),
            (
                "process outside the pods' tree",
                "itself, both ends counted",
                self.outside,
            ),
        ];
        let kinds = kinds.map(|(who, to, address)| Kind { who, to, address });
        let mut taken: Vec<Vec<(u32, Runs)>> = kinds.iter().map(|_| Vec::new()).collect();
        // Slices of all kinds in turn, so that what disturbs the machine disturbs none alone.
        for _ in 0..slices {
            for (kind, taken) in kinds.iter().zip(&mut taken) {
                taken.push(self.slice(programs, kind, &load).await?);
            }
        }
        let figures = kinds.iter().zip(taken);
        figures
            .map(|(kind, slices)| sum_up(tagged_pods, kind, &slices))
            .collect()
    }

    async fn slice(&self, programs: &Programs, kind: &Kind, load: &PathBuf) -> Result<(u32, Runs)> {
        let command = match kind.who {
            "tagged pod" => self.tagged.command(load),
            "untagged pod" => self.untagged.command(load),
            "node's own process" => self.node.command(load)?,
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

fn sum_up(tagged_pods: usize, kind: &Kind, slices: &[(u32, Runs)]) -> Result<Connects> {
    let own = if kind.address.is_ipv4() { "connect4" } else { "connect6" };
    let mut per_connect: Vec<f64> = slices
        .iter()
        .map(|(connects, runs)| ns(runs.time(), *connects))
        .collect();
    let mut connect_program: Vec<f64> = slices
        .iter()
        .filter_map(|(_, runs)| runs.0.get(own).map(|run| per_run(*run)))
        .collect();
    per_connect.sort_unstable_by(f64::total_cmp);
    connect_program.sort_unstable_by(f64::total_cmp);
    let connects: u32 = slices.iter().map(|(connects, _)| connects).sum();
    let mut totals: BTreeMap<&'static str, Run> = BTreeMap::new();
    for (_, runs) in slices {
        for (name, run) in &runs.0 {
            let total = totals.entry(name).or_default();
            total.count += run.count;
            total.time += run.time;
        }
    }
    let seen = totals.get(own).map_or(0, |run| run.count);
    let strangers = seen.saturating_sub(u64::from(connects));
    Ok(Connects {
        tagged_pods,
        who: kind.who,
        to: kind.to,
        connects,
        ns_per_connect: *per_connect.get(per_connect.len() / 2).context("a slice")?,
        least: *per_connect.first().context("a slice")?,
        most: *per_connect.last().context("a slice")?,
        connect_program_ns: *connect_program.get(connect_program.len() / 2).context("a slice")?,
        programs: totals
            .into_iter()
            .map(|(name, run)| {
                let program = Program {
                    runs_per_connect: float(run.count) / f64::from(connects),
                    ns_per_run: per_run(run),
                };
                (name, program)
            })
            .collect(),
        strangers_percent: 100.0 * float(strangers) / float(seen.max(1)),
    })
}

fn ns(time: Duration, times: u32) -> f64 {
    time.as_secs_f64() * 1e9 / f64::from(times)
}

fn per_run(run: Run) -> f64 {
    run.time.as_secs_f64() * 1e9 / float(run.count.max(1))
}

#[expect(clippy::cast_precision_loss, reason = "nobody counts so far")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(connects: u32, runs: u64, nanoseconds: u64) -> (u32, Runs) {
        let run = Run {
            count: runs,
            time: Duration::from_nanos(nanoseconds),
        };
        (connects, Runs([("connect4", run)].into()))
    }

    #[test]
    fn slices_are_summed_up_by_their_median_and_strangers_show() {
        let kind = Kind {
            who: "tagged pod",
            to: "API server",
            address: SERVICE_V4,
        };
        let slices = [slice(10, 10, 1000), slice(10, 10, 2000), slice(10, 20, 9000)];
        let figures = sum_up(1, &kind, &slices).unwrap();
        let close = |is: f64, wanted: f64| assert!((is - wanted).abs() < 1e-6, "{is} in place of {wanted}");
        close(figures.ns_per_connect, 200.0);
        close(figures.least, 100.0);
        close(figures.most, 900.0);
        close(figures.connect_program_ns, 200.0);
        close(figures.programs["connect4"].runs_per_connect, 40.0 / 30.0);
        close(figures.programs["connect4"].ns_per_run, 300.0);
        close(figures.strangers_percent, 25.0);
    }
}
