//! wrk's report.

use anyhow::{Context as _, Result, bail};

use super::{Answers, seconds};

/// Reads what wrk 4 prints.
///
/// # Errors
/// An answer wasn't 2xx or 3xx, a connection failed, or it isn't wrk's report.
pub fn parse(report: &str) -> Result<Answers> {
    for line in report.lines().map(str::trim) {
        if line.starts_with("Non-2xx or 3xx responses:") || line.starts_with("Socket errors:") {
            bail!("wrk saw {line}");
        }
    }
    let summary = report
        .lines()
        .find(|line| line.contains(" requests in "))
        .context("wrk printed no summary")?;
    let mut words = summary.split_whitespace();
    let requests: f64 = words
        .next()
        .and_then(|word| word.parse().ok())
        .context("wrk's summary begins with a number")?;
    let seconds = words
        .find_map(|word| seconds(word.trim_end_matches(',')))
        .context("wrk's summary has its time")?;
    if requests < 1.0 {
        bail!("wrk got no answer");
    }
    Ok(Answers { requests, seconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
Running 3s test @ https://10.96.0.1/api
  1 threads and 128 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     4.41ms    1.07ms  24.91ms   82.20%
    Req/Sec    29.25k     1.43k   31.72k    66.67%
  87354 requests in 3.01s, 113.97MB read
Requests/sec:  29035.67
Transfer/sec:     37.88MB
";

    #[test]
    fn reads_a_good_run() {
        let answers = parse(GOOD).unwrap();
        assert_eq!(
            answers,
            Answers {
                requests: 87_354.0,
                seconds: 3.01
            }
        );
    }

    #[test]
    fn a_run_that_took_minutes_is_read_too() {
        assert_eq!(
            parse(&GOOD.replace("3.01s", "1.50m")).unwrap().seconds.to_bits(),
            90.0_f64.to_bits()
        );
    }

    #[test]
    fn anything_that_went_wrong_voids_it() {
        for trouble in [
            "  Non-2xx or 3xx responses: 12\n",
            "  Socket errors: connect 0, read 3, write 0, timeout 0\n",
        ] {
            let report = GOOD.replace("Requests/sec", &format!("{trouble}Requests/sec"));
            assert!(parse(&report).is_err(), "{trouble}");
        }
        assert!(parse("unable to connect to 10.96.0.1:443 Connection refused\n").is_err());
        assert!(parse(&GOOD.replace("87354", "0")).is_err());
    }
}
