//! The columns of the sessions' table: what stands in them, and how rows are sorted by them.

use std::cmp::Ordering;

use jiff::Timestamp;

use super::model::Row;
use crate::tools::table;

/// A column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Column {
    Namespace,
    Session,
    ActsAs,
    Pods,
    Nodes,
    Rate,
    Failures,
    Half,
    Most,
    Streams,
    Expires,
}

impl Column {
    /// All, from left to right.
    pub(super) const ALL: [Self; 11] = [
        Self::Namespace,
        Self::Session,
        Self::ActsAs,
        Self::Pods,
        Self::Nodes,
        Self::Rate,
        Self::Failures,
        Self::Half,
        Self::Most,
        Self::Streams,
        Self::Expires,
    ];

    pub(super) fn header(self) -> &'static str {
        match self {
            Self::Namespace => "NAMESPACE",
            Self::Session => "SESSION",
            Self::ActsAs => "AS",
            Self::Pods => "PODS",
            Self::Nodes => "NODES",
            Self::Rate => "REQ/S",
            Self::Failures => "ERR/S",
            Self::Half => "+P50",
            Self::Most => "+P99",
            Self::Streams => "OPEN",
            Self::Expires => "EXPIRES",
        }
    }

    /// The capital letter that sorts by it.
    pub(super) fn letter(self) -> char {
        match self {
            Self::Namespace => 'P',
            Self::Session => 'N',
            Self::ActsAs => 'U',
            Self::Pods => 'O',
            Self::Nodes => 'D',
            Self::Rate => 'R',
            Self::Failures => 'E',
            Self::Half => 'H',
            Self::Most => 'L',
            Self::Streams => 'T',
            Self::Expires => 'X',
        }
    }

    /// What sorts by it, in words.
    pub(super) fn meaning(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Session => "session",
            Self::ActsAs => "as whom",
            Self::Pods => "pods intercepted",
            Self::Nodes => "nodes",
            Self::Rate => "requests a second",
            Self::Failures => "answers of 400 and above a second",
            Self::Half => "latency added, of half",
            Self::Most => "latency added, of 99 in 100",
            Self::Streams => "requests and streams open",
            Self::Expires => "end",
        }
    }

    /// Its width in characters; nothing where it takes what is left.
    pub(super) fn width(self) -> Option<u16> {
        match self {
            Self::Namespace => Some(11),
            Self::Session => Some(12),
            Self::ActsAs => None,
            Self::Rate | Self::Failures => Some(6),
            Self::Pods | Self::Nodes | Self::Half | Self::Most | Self::Streams => Some(5),
            Self::Expires => Some(8),
        }
    }

    /// Whether there is room for it on a screen so wide.
    pub(super) fn fits(self, width: u16) -> bool {
        match self {
            Self::Nodes | Self::Half => width >= 100,
            _ => true,
        }
    }

    /// Numbers, which stand on the right.
    pub(super) fn is_number(self) -> bool {
        !matches!(self, Self::Namespace | Self::Session | Self::ActsAs | Self::Expires)
    }

    /// Whether the largest is of most interest.
    pub(super) fn is_largest_first(self) -> bool {
        self.is_number()
    }

    pub(super) fn cell(self, row: &Row, now: Timestamp) -> String {
        match self {
            Self::Namespace => table::printable(&row.key.namespace),
            Self::Session => table::printable(&row.key.name),
            Self::ActsAs if row.phase != "Active" && !row.phase.is_empty() => table::printable(&row.phase),
            Self::ActsAs => table::printable(&short_user(&row.acts_as)),
            Self::Pods if row.enrolled == row.pods => row.pods.to_string(),
            Self::Pods => format!("{}/{}", row.enrolled, row.pods),
            Self::Nodes => row.nodes.len().to_string(),
            Self::Rate => rate(row.rate),
            Self::Failures => rate(row.failures),
            Self::Half => row.p50.map_or_else(unknown, length),
            Self::Most => row.p99.map_or_else(unknown, length),
            Self::Streams => row.streams.to_string(),
            Self::Expires => table::until(row.expires, now),
        }
    }

    /// How two rows stand to each other by it, the smaller first; what isn't known is the smallest.
    pub(super) fn compare(self, one: &Row, other: &Row) -> Ordering {
        let numbers = |one: Option<f64>, other: Option<f64>| one.unwrap_or(-1.0).total_cmp(&other.unwrap_or(-1.0));
        match self {
            Self::Namespace => one.key.namespace.cmp(&other.key.namespace),
            Self::Session => one.key.name.cmp(&other.key.name),
            Self::ActsAs => one.acts_as.cmp(&other.acts_as),
            Self::Pods => one.enrolled.cmp(&other.enrolled),
            Self::Nodes => one.nodes.len().cmp(&other.nodes.len()),
            Self::Rate => numbers(one.rate, other.rate),
            Self::Failures => numbers(one.failures, other.failures),
            Self::Half => one.p50.cmp(&other.p50),
            Self::Most => one.p99.cmp(&other.p99),
            Self::Streams => one.streams.cmp(&other.streams),
            // What never ends comes last.
            Self::Expires => {
                let end = |row: &Row| row.expires.unwrap_or(Timestamp::MAX);
                end(one).cmp(&end(other))
            }
        }
    }
}

/// `sa:prod:viewer` for a service account: what all of them begin with tells nothing.
fn short_user(user: &str) -> String {
    match user.strip_prefix("system:serviceaccount:") {
        Some(account) => format!("sa:{account}"),
        None => user.to_owned(),
    }
}

fn unknown() -> String {
    "-".to_owned()
}

fn rate(rate: Option<f64>) -> String {
    match rate {
        None => unknown(),
        Some(rate) if rate >= 100.0 => format!("{rate:.0}"),
        Some(rate) => format!("{rate:.1}"),
    }
}

fn length(length: std::time::Duration) -> String {
    let micros = length.as_micros();
    match micros {
        0..1_000 => format!("{micros}µs"),
        1_000..10_000 => format!("{:.1}ms", length.as_secs_f64() * 1e3),
        10_000..1_000_000 => format!("{}ms", micros / 1_000),
        _ => format!("{}s", micros / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rstest::rstest;

    use super::*;

    fn row() -> Row {
        Row {
            phase: "Active".to_owned(),
            acts_as: "system:serviceaccount:prod:viewer".to_owned(),
            enrolled: 1,
            pods: 2,
            rate: Some(1234.5),
            failures: Some(0.25),
            p99: Some(Duration::from_micros(1500)),
            expires: Some(Timestamp::from_second(300).unwrap()),
            ..Row::default()
        }
    }

    #[rstest]
    #[case(Column::ActsAs, "sa:prod:viewer")]
    #[case(Column::Pods, "1/2")]
    #[case(Column::Rate, "1234")]
    #[case(Column::Failures, "0.2")]
    #[case(Column::Half, "-")]
    #[case(Column::Most, "1.5ms")]
    #[case(Column::Expires, "5m")]
    fn cells(#[case] column: Column, #[case] expected: &str) {
        let now = Timestamp::from_second(0).unwrap();
        assert_eq!(column.cell(&row(), now), expected);
    }

    #[test]
    fn one_that_is_over_says_so_in_place_of_whom() {
        let mut over = row();
        over.phase = "Expired".to_owned();
        assert_eq!(Column::ActsAs.cell(&over, Timestamp::UNIX_EPOCH), "Expired");
    }

    #[test]
    fn each_letter_sorts_by_one_column() {
        for (at, column) in Column::ALL.iter().enumerate() {
            assert!(column.letter().is_ascii_uppercase());
            assert!(Column::ALL[..at].iter().all(|other| other.letter() != column.letter()));
        }
    }

    #[rstest]
    #[case(Column::Rate)]
    #[case(Column::Failures)]
    #[case(Column::Most)]
    #[case(Column::Expires)]
    fn what_is_not_known_is_smallest_and_what_never_ends_last(#[case] column: Column) {
        let expected = if column == Column::Expires {
            Ordering::Greater
        } else {
            Ordering::Less
        };
        assert_eq!(column.compare(&Row::default(), &row()), expected);
    }
}
