//! Requests and handshakes, and what they cost.

use anyhow::{Result, ensure};
use understudy_tests::node::Running;

use super::{Meter, Protocol, Terms, Values, limit};
use crate::{
    clients,
    stage::{Target, printed},
};

/// Small GETs as fast as they are answered.
pub(super) async fn slice(
    target: &Target,
    terms: Terms,
    protocol: Protocol,
    connections: u32,
    streams: u32,
) -> Result<Values> {
    let seconds = terms.seconds;
    let counter = match (terms.instructions, target.process()?) {
        (true, Some(process)) => Some(Counter::start(target, process)?),
        _ => None,
    };
    let meter = Meter::start(target)?;
    let answers = match protocol {
        Protocol::Http1 => clients::wrk(&printed(target.wrk(connections, seconds), limit(seconds)).await?)?,
        Protocol::Http2 => {
            clients::h2load(&printed(target.h2load(connections, streams, seconds), limit(seconds)).await?)?
        }
    };
    let used = meter.seconds()?;
    let mut values = vec![("per-second", answers.requests / answers.seconds)];
    if let Some(used) = used {
        values.push(("per-cpu-second", answers.requests / used));
    }
    if let Some(counter) = counter {
        values.push(("instructions", counter.stop().await? / answers.requests));
    }
    Ok(values)
}

/// Connections, each for one request.
pub(super) async fn handshakes(target: &Target, terms: Terms, resumed: bool) -> Result<Values> {
    let mut command = target
        .load("handshakes")
        .args(["--seconds", &terms.seconds.to_string(), "--connections", "1"]);
    if resumed {
        command = command.arg("--resume");
    }
    let meter = Meter::start(target)?;
    let result = clients::last_line(&printed(command, limit(terms.seconds)).await?)?;
    let used = meter.seconds()?;
    let made = clients::number(&result, "handshakes")?;
    let of_those = clients::number(&result, "resumed")?;
    // The first of a client has nothing to resume.
    let as_asked = if resumed {
        of_those >= made * 0.95
    } else {
        of_those < 1.0
    };
    ensure!(as_asked, "{of_those} of {made} handshakes were resumed");
    let mut values = vec![("per-second", made / clients::number(&result, "seconds")?)];
    if let Some(used) = used {
        values.push(("per-cpu-second", made / used));
    }
    Ok(values)
}

/// `perf stat` beside a process.
struct Counter(Running);

impl Counter {
    fn start(target: &Target, process: u32) -> Result<Self> {
        let command = target.stage.on_node("perf")?;
        let command = command.args(["stat", "--field-separator=,", "--event=instructions", "--pid"]);
        Ok(Self(command.arg(process.to_string()).spawn()?))
    }

    /// How many instructions there were since the start.
    async fn stop(self) -> Result<f64> {
        let process = self.0.pid().and_then(|process| i32::try_from(process).ok());
        if let Some(process) = process {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(process), nix::sys::signal::Signal::SIGINT)?;
        }
        let output = self.0.wait(limit(0)).await?;
        clients::instructions(&output.stderr)
            .ok_or_else(|| anyhow::anyhow!("perf counted nothing: {}", output.stderr.trim()))
    }
}
