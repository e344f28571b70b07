//! The order of slices, and what is made of them. Targets take turns, forwards and then backwards, so that what
//! drifts over a run drifts for all: with two targets that is A-B-B-A. Each round gives one ratio for each peer.

use std::collections::BTreeMap;

use crate::{
    measures::{Measure, Values},
    peers::Peer,
    statistics::Estimate,
};

/// A slice that was run.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Of which target.
    pub peer: Peer,
    /// In which round.
    pub round: usize,
    /// What it gave; why it is void otherwise.
    pub outcome: Result<Values, String>,
}

/// All slices of a measure.
#[derive(Debug, Clone, PartialEq)]
pub struct Samples {
    /// What was measured.
    pub measure: Measure,
    /// The slices, in the order in which they ran.
    pub samples: Vec<Sample>,
}

/// The targets' turns in a round, by their place: forwards in even rounds, backwards in odd ones. `rounds` says how many
/// each takes part in.
#[must_use]
pub fn turns(round: usize, rounds: &[usize]) -> Vec<usize> {
    let part: Vec<usize> = (0..rounds.len()).filter(|target| round < rounds[*target]).collect();
    if round.is_multiple_of(2) {
        part
    } else {
        part.into_iter().rev().collect()
    }
}

impl Samples {
    /// A quantity of a target, by round.
    #[must_use]
    pub fn of(&self, peer: Peer, quantity: &str) -> BTreeMap<usize, f64> {
        let of_it = self.samples.iter().filter(|sample| sample.peer == peer);
        of_it
            .filter_map(|sample| {
                let values = sample.outcome.as_ref().ok()?;
                let (_, value) = values.iter().find(|(id, _)| *id == quantity)?;
                Some((sample.round, *value))
            })
            .collect()
    }

    /// A quantity of a target less what direct had in the same round.
    #[must_use]
    pub fn added(&self, peer: Peer, quantity: &str) -> BTreeMap<usize, f64> {
        let direct = self.of(Peer::Direct, quantity);
        let of_it = self.of(peer, quantity).into_iter();
        of_it
            .filter_map(|(round, value)| Some((round, value - direct.get(&round)?)))
            .collect()
    }

    /// How many of a target's slices are void.
    #[must_use]
    pub fn void(&self, peer: Peer) -> usize {
        let of_it = self.samples.iter().filter(|sample| sample.peer == peer);
        of_it.filter(|sample| sample.outcome.is_err()).count()
    }

    /// Why a target's first void slice is void.
    #[must_use]
    pub fn why_void(&self, peer: Peer) -> Option<&str> {
        let mut of_it = self.samples.iter().filter(|sample| sample.peer == peer);
        of_it.find_map(|sample| sample.outcome.as_ref().err().map(String::as_str))
    }
}

/// Of what was seen in any round.
#[must_use]
pub fn estimate(of: &BTreeMap<usize, f64>) -> Option<Estimate> {
    Estimate::of(&of.values().copied().collect::<Vec<_>>())
}

/// Of the ratios of two, for the rounds that both have.
#[must_use]
pub fn ratio(of: &BTreeMap<usize, f64>, to: &BTreeMap<usize, f64>) -> Option<Estimate> {
    let ratios: Vec<f64> = of
        .iter()
        .filter_map(|(round, value)| Some(value / to.get(round)?))
        .collect();
    Estimate::of(&ratios)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measures::Protocol;

    fn samples(outcomes: &[(Peer, usize, Option<f64>)]) -> Samples {
        let sample = |(peer, round, value): &(Peer, usize, Option<f64>)| Sample {
            peer: *peer,
            round: *round,
            outcome: value.map(|value| vec![("p50-us", value)]).ok_or("a 500".to_owned()),
        };
        Samples {
            measure: Measure::Requests(Protocol::Http1, 1, 1),
            samples: outcomes.iter().map(sample).collect(),
        }
    }

    #[test]
    fn two_targets_take_turns_a_b_b_a() {
        let order: Vec<usize> = (0..4).flat_map(|round| turns(round, &[4, 4])).collect();
        assert_eq!(order, [0, 1, 1, 0, 0, 1, 1, 0]);
    }

    #[test]
    fn a_target_takes_part_in_as_many_rounds_as_it_is_given() {
        assert_eq!(turns(0, &[3, 1, 2]), [0, 1, 2]);
        assert_eq!(turns(1, &[3, 1, 2]), [2, 0]);
        assert_eq!(turns(2, &[3, 1, 2]), [0]);
    }

    #[test]
    fn a_ratio_is_of_slices_of_one_round_and_void_ones_have_none() {
        let samples = samples(&[
            (Peer::Understudy, 0, Some(30.0)),
            (Peer::Nginx, 0, Some(10.0)),
            (Peer::Understudy, 1, Some(400.0)),
            (Peer::Nginx, 1, None),
            (Peer::Understudy, 2, Some(60.0)),
            (Peer::Nginx, 2, Some(20.0)),
        ]);
        let (ours, theirs) = (
            samples.of(Peer::Understudy, "p50-us"),
            samples.of(Peer::Nginx, "p50-us"),
        );
        let ratio = ratio(&ours, &theirs).unwrap();
        assert_eq!((ratio.median, ratio.samples), (3.0, 2));
        assert_eq!((samples.void(Peer::Nginx), samples.void(Peer::Understudy)), (1, 0));
        assert_eq!(samples.why_void(Peer::Nginx), Some("a 500"));
    }

    #[test]
    fn what_is_added_is_over_direct_of_the_same_round() {
        let samples = samples(&[
            (Peer::Direct, 0, Some(100.0)),
            (Peer::Relay, 0, Some(130.0)),
            (Peer::Direct, 1, Some(200.0)),
            (Peer::Relay, 1, Some(240.0)),
            (Peer::Relay, 2, Some(900.0)),
        ]);
        let added: Vec<f64> = samples.added(Peer::Relay, "p50-us").into_values().collect();
        assert_eq!(added, [30.0, 40.0]);
    }
}
