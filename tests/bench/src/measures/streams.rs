//! Long-running requests: when what the upstream says arrives.

use anyhow::Result;

use super::{Terms, Transport, Values, limit};
use crate::{
    clients,
    stage::{Target, printed},
};

const FAN: u32 = 5_000;

/// From the upstream's stamp to each watch.
pub(super) async fn fan_out(target: &Target, terms: Terms) -> Result<Values> {
    let (watches, events) = if terms.quick { (FAN / 5, 10) } else { (FAN, 20) };
    let command = target
        .load("fanout")
        .args(["--protocol", "http2", "--count", &watches.to_string()])
        .args(["--events", &events.to_string(), "--control"])
        .arg(target.stage.control());
    times(&printed(command, limit(30)).await?)
}

/// 64 bytes there and back through an exec.
pub(super) async fn echo(target: &Target, terms: Terms, transport: Transport) -> Result<Values> {
    let command = target
        .load("echo")
        .args(["--transport", transport.argument()])
        .args(["--seconds", &terms.seconds.to_string()]);
    times(&printed(command, limit(terms.seconds)).await?)
}

fn times(printed: &str) -> Result<Values> {
    let result = clients::last_line(printed)?;
    Ok(vec![
        ("p50-us", clients::number(&result, "p50_us")?),
        ("p99-us", clients::number(&result, "p99_us")?),
    ])
}
