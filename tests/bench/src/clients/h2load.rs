//! h2load's report.

use anyhow::{Context as _, Result, bail};

use super::{Answers, seconds};

/// Reads what h2load of nghttp2 1.x prints.
///
/// # Errors
/// An answer wasn't 2xx, a request failed, it spoke something other than HTTP/2, or it isn't h2load's report.
pub fn parse(report: &str) -> Result<Answers> {
    if !report.lines().any(|line| line.trim() == "Application protocol: h2") {
        bail!("h2load was not given HTTP/2");
    }
    let finished = line(report, "finished in ")?;
    let seconds = seconds(finished.split(',').next().unwrap_or_default()).context("h2load's time")?;
    let requests = line(report, "requests: ")?;
    let codes = line(report, "status codes: ")?;
    let succeeded = count(codes, "2xx").context("h2load counts status codes")?;
    for (counts, wrong) in [
        (requests, ["failed", "errored", "timeout"]),
        (codes, ["3xx", "4xx", "5xx"]),
    ] {
        for kind in wrong {
            if count(counts, kind) != Some(0.0) {
                bail!("h2load saw {counts}");
            }
        }
    }
    if succeeded < 1.0 {
        bail!("h2load got no answer");
    }
    Ok(Answers {
        requests: succeeded,
        seconds,
    })
}

fn line<'a>(report: &'a str, start: &str) -> Result<&'a str> {
    report
        .lines()
        .find_map(|line| line.strip_prefix(start))
        .with_context(|| format!("h2load printed no `{}`", start.trim()))
}

/// The number before that word: `89798 total, 89926 started`.
fn count(counts: &str, of: &str) -> Option<f64> {
    counts.split(", ").find_map(|part| {
        let (number, kind) = part.trim().split_once(' ')?;
        (kind == of).then(|| number.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
starting benchmark...
spawning thread #0: 16 total client(s). Timing-based test with 0s of warm-up time and 3s of main duration for measurements.
Warm-up started for thread #0.
TLS Protocol: TLSv1.3
Cipher: TLS_AES_256_GCM_SHA384
Server Temp Key: X25519 253 bits
Application protocol: h2
Main benchmark duration is over for thread #0. Stopping all clients.

finished in 3.00s, 29932.67 req/s, 35.60MB/s
requests: 89798 total, 89926 started, 89798 done, 89798 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 89798 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 106.81MB (111994272) total, 1.20MB (1257424) headers (space savings 95.30%), 102.76MB (107757600) data
";

    #[test]
    fn reads_a_good_run() {
        let answers = parse(GOOD).unwrap();
        assert_eq!(
            answers,
            Answers {
                requests: 89_798.0,
                seconds: 3.0
            }
        );
    }

    #[test]
    fn short_runs_are_in_milliseconds() {
        let answers = parse(&GOOD.replace("in 3.00s", "in 850.00ms")).unwrap();
        assert!((answers.seconds - 0.85).abs() < 1e-9);
    }

    #[test]
    fn anything_that_went_wrong_voids_it() {
        for (was, is) in [
            ("0 failed", "2 failed"),
            ("0 errored", "1 errored"),
            ("0 timeout", "1 timeout"),
            ("0 5xx", "7 5xx"),
            ("0 4xx", "7 4xx"),
            ("Application protocol: h2", "Application protocol: http/1.1"),
            ("status codes", "codes"),
            ("89798 2xx", "0 2xx"),
        ] {
            assert!(parse(&GOOD.replace(was, is)).is_err(), "{is}");
        }
    }
}
