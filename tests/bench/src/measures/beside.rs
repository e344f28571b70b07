//! What recording and the audit log cost: the same work with and without, by the same agent in turns A-B-B-A, and what
//! the one takes as so many times the other. Each slice gives one ratio.

use anyhow::{Result, ensure};

use super::{Meter, Terms, Transport, Values, limit};
use crate::{
    clients,
    stage::{Target, Via, printed},
};

/// In turns, so that what drifts drifts for both.
const TURNS: [bool; 4] = [false, true, true, false];
/// Whose requests the policy leaves out.
const UNAUDITED: &str = "/api/v1/namespaces/unaudited/pods/small";
const AUDITED: &str = "/api/v1/namespaces/audited/pods/small";
/// All else is written as it is without a policy.
const POLICY: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n\
    - {level: None, namespaces: [unaudited]}\n- {level: Metadata}\n";

/// Processor time and time, of both kinds of turns.
#[derive(Debug, Default)]
struct Taken {
    work: [f64; 2],
    used: [f64; 2],
    lasted: [f64; 2],
}

impl Taken {
    fn add(&mut self, with: bool, work: f64, used: f64, lasted: f64) {
        let side = usize::from(with);
        self.work[side] += work;
        self.used[side] += used;
        self.lasted[side] += lasted;
    }

    /// What a piece of work takes with it, as so many times what it takes without.
    fn times(&self, of: [f64; 2]) -> f64 {
        (of[1] / self.work[1]) / (of[0] / self.work[0])
    }

    fn values(&self, rate: &'static str) -> Values {
        vec![
            ("cpu-times", self.times(self.used)),
            ("time-times", self.times(self.lasted)),
            (rate, self.work[1] / self.used[1]),
        ]
    }
}

/// A program's lines down through one exec, in a session that is recorded and in one that isn't.
pub(super) async fn recorded(target: &Target, terms: Terms, transport: Transport) -> Result<Values> {
    let bytes: u64 = if terms.quick { 64_000_000 } else { 256_000_000 };
    let mut taken = Taken::default();
    for with in TURNS {
        let via = if with { Via::Recorded } else { Via::Plain };
        let command = target
            .load_via(via, "bulk")
            .args(["--transport", transport.argument(), "--bytes", &bytes.to_string()])
            .args(["--direction", "down", "--content", "lines"]);
        let meter = Meter::start(target)?;
        let result = clients::last_line(&printed(command, limit(60)).await?)?;
        let used = meter.seconds()?.unwrap_or_default();
        let megabytes = clients::number(&result, "bytes")? / 1e6;
        taken.add(with, megabytes, used, clients::number(&result, "seconds")?);
        let written = target.take_recordings()?;
        ensure!(
            with == (written >= bytes),
            "{written} bytes were recorded of {bytes}, in a session where recording is {}",
            if with { "required" } else { "off" }
        );
    }
    Ok(taken.values("mb-per-cpu-second"))
}

/// Small GETs that leave an event at the level `Metadata`, and such as leave none.
pub(super) async fn audited(target: &mut Target, terms: Terms) -> Result<Values> {
    let policy = target.stage.write("audit-policy.yaml", POLICY)?;
    target
        .restart_with(&["--audit-policy".to_owned(), policy.display().to_string()])
        .await?;
    let outcome = audited_turns(target, terms).await;
    // The measures that follow are of an agent without a policy.
    target.restart_with(&[]).await?;
    outcome
}

async fn audited_turns(target: &Target, terms: Terms) -> Result<Values> {
    let mut taken = Taken::default();
    // The first requests of an agent are dearer, whichever they are.
    printed(target.wrk_at(UNAUDITED, 16, 1), limit(1)).await?;
    for with in TURNS {
        let path = if with { AUDITED } else { UNAUDITED };
        let meter = Meter::start(target)?;
        let answers = clients::wrk(&printed(target.wrk_at(path, 16, terms.seconds), limit(terms.seconds)).await?)?;
        let used = meter.seconds()?.unwrap_or_default();
        taken.add(with, answers.requests, used, answers.seconds);
        let written = target.take_audit_log()?;
        #[expect(clippy::cast_precision_loss, reason = "bytes of a log are far below 2^52")]
        let each = written as f64 / answers.requests;
        // An event has half a kilobyte at least; requests of other slices leave a few.
        ensure!(
            with == (each > 256.0),
            "{each:.0} bytes of audit log for each request, at the level {}",
            if with { "Metadata" } else { "None" }
        );
    }
    Ok(taken.values("per-cpu-second"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_takes_is_for_as_much_work() {
        let mut taken = Taken::default();
        for (with, work, used, lasted) in [
            (false, 100.0, 1.0, 2.0),
            (true, 50.0, 0.75, 1.0),
            (true, 50.0, 0.75, 1.2),
            (false, 100.0, 1.0, 2.0),
        ] {
            taken.add(with, work, used, lasted);
        }
        let values = taken.values("mb-per-cpu-second");
        let near = |at: usize, expected: f64| (values[at].1 - expected).abs() < 1e-9;
        assert!(near(0, 1.5) && near(1, 1.1) && near(2, 100.0 / 1.5), "{values:?}");
    }
}
