//! One event as a line for people.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use serde_json::Value;

use crate::tools::table::printable;

const PREFIX: &str = "understudy.dev/";

/// How a request fared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tools) enum Told {
    /// Well.
    Good,
    /// It goes on.
    Open,
    /// Not, and the client may have asked amiss.
    Poor,
    /// Not, by the server's fault, or the agent refused it.
    Bad,
}

/// The line of an event, in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::tools) struct Line {
    pub(in crate::tools) time: String,
    /// Node, session and pod.
    pub(in crate::tools) whose: String,
    /// Verb and object.
    pub(in crate::tools) what: String,
    /// Code, and how long it took, or why it was refused.
    pub(in crate::tools) outcome: String,
    pub(in crate::tools) told: Told,
}

impl Line {
    /// Reads an event leniently: what isn't there isn't said. The node is said where there are several.
    pub(in crate::tools) fn read(event: &[u8], node: Option<&str>) -> Self {
        let event: Value = serde_json::from_slice(event).unwrap_or_default();
        let said = |name: &str| event["annotations"][format!("{PREFIX}{name}")].as_str();
        let time = event["stageTimestamp"].as_str().unwrap_or_default();
        let parsed: Option<Timestamp> = time.parse().ok();
        let time = parsed.map_or_else(|| printable(time), clock);
        let whose: Vec<String> = [node, said("session"), said("pod")]
            .into_iter()
            .flatten()
            .map(printable)
            .collect();
        if let Some(lost) = said("lost") {
            return Self {
                time,
                whose: whose.join(" "),
                what: format!("{} events lost: too many came to be shown", printable(lost)),
                outcome: "they are in the log".to_owned(),
                told: Told::Bad,
            };
        }
        let (outcome, told) = outcome(&event, said("refused"), said("cut-short").is_some());
        Self {
            time,
            whose: whose.join(" "),
            what: what(&event),
            outcome,
            told,
        }
    }

    /// Writes it, with colours.
    pub(in crate::tools) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let dim = Style::new().dimmed();
        let colour = match self.told {
            Told::Good => AnsiColor::Green,
            Told::Open => AnsiColor::Cyan,
            Told::Poor => AnsiColor::Yellow,
            Told::Bad => AnsiColor::Red,
        };
        let style = Style::new().fg_color(Some(colour.into()));
        let (time, whose, what, outcome) = (&self.time, &self.whose, &self.what, &self.outcome);
        writeln!(out, "{dim}{time}{dim:#} {whose}  {what}  {style}{outcome}{style:#}")
    }
}

/// The time of day where the reader is, to the millisecond.
fn clock(time: Timestamp) -> String {
    time.to_zoned(TimeZone::system()).strftime("%H:%M:%S%.3f").to_string()
}

fn what(event: &Value) -> String {
    let verb = event["verb"].as_str().unwrap_or_default();
    let object = &event["objectRef"];
    let part = |name: &str| object[name].as_str().unwrap_or_default();
    if part("resource").is_empty() {
        return format!("{verb} {}", printable(event["requestURI"].as_str().unwrap_or_default()));
    }
    let mut what = format!("{verb} {}", part("resource"));
    for (before, part) in [("/", part("subresource")), (".", part("apiGroup"))] {
        if !part.is_empty() {
            what.push_str(before);
            what.push_str(part);
        }
    }
    let (namespace, name) = (part("namespace"), part("name"));
    if !namespace.is_empty() || !name.is_empty() {
        what.push(' ');
        what.push_str(namespace);
        if !namespace.is_empty() && !name.is_empty() {
            what.push('/');
        }
        what.push_str(name);
    }
    printable(&what)
}

fn outcome(event: &Value, refused: Option<&str>, is_cut: bool) -> (String, Told) {
    let code = event["responseStatus"]["code"].as_u64().unwrap_or_default();
    if let Some(refused) = refused {
        return (format!("{code} refused: {}", printable(refused)), Told::Bad);
    }
    if event["stage"] == "ResponseStarted" {
        return (format!("{code} begins"), Told::Open);
    }
    let at = |name: &str| event[name].as_str()?.parse::<Timestamp>().ok();
    let times = at("requestReceivedTimestamp").zip(at("stageTimestamp"));
    let took = times.map_or_else(String::new, |(from, to)| {
        format!(" {}", length(to.duration_since(from)))
    });
    let cut = if is_cut { " cut short" } else { "" };
    match code {
        0 => ("the client left".to_owned(), Told::Poor),
        500.. => (format!("{code}{took}{cut}"), Told::Bad),
        400.. => (format!("{code}{took}{cut}"), Told::Poor),
        _ => (format!("{code}{took}{cut}"), Told::Good),
    }
}

fn length(length: SignedDuration) -> String {
    let micros = length.as_micros().max(0);
    match micros {
        0..1_000 => format!("{micros}µs"),
        1_000..10_000_000 => format!("{}ms", micros / 1_000),
        _ => format!("{}s", micros / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn event(changes: &Value) -> Value {
        let mut event = json!({
            "kind": "Event", "stage": "ResponseComplete", "verb": "get", "requestURI": "/api/v1/namespaces/prod/pods/web",
            "objectRef": {"resource": "pods", "namespace": "prod", "name": "web", "apiVersion": "v1"},
            "responseStatus": {"code": 200},
            "requestReceivedTimestamp": "2026-06-01T12:00:00.250000Z", "stageTimestamp": "2026-06-01T12:00:00.262000Z",
            "annotations": {"understudy.dev/session": "support/alice", "understudy.dev/pod": "shell"},
        });
        for (name, value) in changes.as_object().unwrap() {
            event[name] = value.clone();
        }
        event
    }

    #[rstest]
    #[case::well(json!({}), "get pods prod/web", "200 12ms", Told::Good)]
    #[case::begun(json!({"stage": "ResponseStarted", "verb": "watch"}), "watch pods prod/web", "200 begins", Told::Open)]
    #[case::group(
        json!({"verb": "create", "objectRef": {"resource": "deployments", "apiGroup": "apps", "namespace": "prod", "subresource": "scale"}}),
        "create deployments/scale.apps prod", "200 12ms", Told::Good
    )]
    #[case::cluster_wide(json!({"objectRef": {"resource": "nodes", "name": "box"}}), "get nodes box", "200 12ms", Told::Good)]
    #[case::no_resource(json!({"objectRef": null, "requestURI": "/version"}), "get /version", "200 12ms", Told::Good)]
    #[case::missing(json!({"responseStatus": {"code": 404}}), "get pods prod/web", "404 12ms", Told::Poor)]
    #[case::broken(json!({"responseStatus": {"code": 503}}), "get pods prod/web", "503 12ms", Told::Bad)]
    #[case::left(json!({"responseStatus": null}), "get pods prod/web", "the client left", Told::Poor)]
    #[case::refused(
        json!({"responseStatus": {"code": 403}, "annotations": {"understudy.dev/refused": "impersonation"}}),
        "get pods prod/web", "403 refused: impersonation", Told::Bad
    )]
    #[case::gap(
        json!({"verb": "gap", "annotations": {"understudy.dev/lost": "7"}}),
        "7 events lost: too many came to be shown", "they are in the log", Told::Bad
    )]
    #[case::nothing_moves_the_cursor(
        json!({"objectRef": null, "requestURI": "/a\u{1b}[2J"}), "get /a\u{fffd}[2J", "200 12ms", Told::Good
    )]
    fn lines(#[case] changes: Value, #[case] what: &str, #[case] outcome: &str, #[case] told: Told) {
        let line = Line::read(event(&changes).to_string().as_bytes(), None);
        assert_eq!(
            (line.what.as_str(), line.outcome.as_str(), line.told),
            (what, outcome, told)
        );
    }

    #[test]
    fn the_node_is_said_where_there_are_several() {
        let event = event(&json!({})).to_string();
        assert_eq!(Line::read(event.as_bytes(), None).whose, "support/alice shell");
        let line = Line::read(event.as_bytes(), Some("box"));
        assert_eq!(line.whose, "box support/alice shell");
        let mut out = anstream::StripStream::new(Vec::new());
        line.write(&mut out).unwrap();
        let text = String::from_utf8(out.into_inner()).unwrap();
        assert!(
            text.ends_with(".262 box support/alice shell  get pods prod/web  200 12ms\n"),
            "{text}"
        );
    }

    #[rstest]
    #[case(12, "12µs")]
    #[case(9_999_999, "9999ms")]
    #[case(61_000_000, "61s")]
    #[case(-5, "0µs")]
    fn lengths(#[case] micros: i64, #[case] expected: &str) {
        assert_eq!(length(SignedDuration::from_micros(micros)), expected);
    }
}
