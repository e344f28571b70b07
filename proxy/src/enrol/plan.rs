//! What to do for a pod, decided from what is known of it and what a look at its cgroup showed. Nothing is done
//! here.

use super::netns::NetnsId;
use crate::pod::{CgroupId, WantedPod};

/// What is known of a pod, as far as deciding needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// Nothing is tagged.
    Nothing,
    /// Tagged, without listeners.
    Tagged(CgroupId),
    /// With listeners in a namespace.
    Enrolled(CgroupId, NetnsId),
}

/// What was seen, likewise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen<'a> {
    /// No cgroup.
    Absent,
    /// A cgroup, no process.
    Empty(CgroupId),
    /// A cgroup, and the namespaces of its processes.
    Inhabited(CgroupId, &'a [NetnsId]),
}

/// What to do, in the order of the fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "four things to do or not, in any combination"
)]
pub(super) struct Step {
    /// Close the listeners and end the connections.
    pub(super) close: bool,
    /// Remove the entry of the cgroup that was.
    pub(super) untag: bool,
    /// Make an entry without listeners.
    pub(super) tag: bool,
    /// Make listeners in the namespace seen, and set them in the entry.
    pub(super) enrol: bool,
}

/// Decides.
pub(super) fn step(known: Known, seen: Seen<'_>) -> Step {
    let (known_id, netns) = match known {
        Known::Nothing => (None, None),
        Known::Tagged(id) => (Some(id), None),
        Known::Enrolled(id, netns) => (Some(id), Some(netns)),
    };
    let (seen_id, namespaces): (_, &[NetnsId]) = match seen {
        Seen::Absent => (None, &[]),
        Seen::Empty(id) => (Some(id), &[]),
        Seen::Inhabited(id, namespaces) => (Some(id), namespaces),
    };
    let same = known_id == seen_id;
    // One process that is still in the namespace keeps it the pod's.
    let stays = same && netns.is_some_and(|netns| namespaces.contains(&netns));
    Step {
        close: netns.is_some() && !stays,
        untag: known_id.is_some() && !same,
        tag: seen_id.is_some() && !same,
        enrol: !stays && !namespaces.is_empty(),
    }
}

/// Of the pods wanted, those with a cgroup of their own. Two claims to one cgroup can't both be granted: the first
/// stands, and the others are returned beside.
pub(super) fn distinct(wanted: &[WantedPod]) -> (Vec<WantedPod>, Vec<WantedPod>) {
    let mut taken = std::collections::HashSet::new();
    wanted.iter().cloned().partition(|pod| taken.insert(pod.cgroup.clone()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rstest::rstest;

    use super::*;
    use crate::enrol::netns::Netns;

    const ONE: CgroupId = CgroupId(1);
    const TWO: CgroupId = CgroupId(2);

    fn namespaces() -> (NetnsId, NetnsId) {
        // Any two distinct files will do.
        let id = |path| Netns::open(Path::new(path)).unwrap().id();
        (id("/proc/self/ns/net"), id("/proc/self/ns/mnt"))
    }

    /// Letters for the fields of a step.
    fn text(step: Step) -> String {
        [(step.close, 'c'), (step.untag, 'u'), (step.tag, 't'), (step.enrol, 'e')]
            .iter()
            .filter_map(|(on, letter)| on.then_some(letter))
            .collect()
    }

    #[rstest]
    #[case::nowhere("-", "-", "")]
    #[case::appears_empty("-", "1", "t")]
    #[case::appears_inhabited("-", "1a", "te")]
    #[case::still_empty("1", "1", "")]
    #[case::first_process("1", "1a", "e")]
    #[case::stays("1a", "1a", "")]
    #[case::stays_while_one_is_left("1a", "1ba", "")]
    #[case::emptied("1a", "1", "c")]
    #[case::moved("1a", "1b", "ce")]
    #[case::vanished("1a", "-", "cu")]
    #[case::vanished_empty("1", "-", "u")]
    #[case::made_anew_empty("1a", "2", "cut")]
    #[case::made_anew("1a", "2a", "cute")]
    fn steps(#[case] known: &str, #[case] seen: &str, #[case] expected: &str) {
        let (a, b) = namespaces();
        let parse = |text: &str| {
            let id = match text.chars().next() {
                Some('1') => Some(ONE),
                Some('2') => Some(TWO),
                _ => None,
            };
            let namespaces: Vec<NetnsId> = text
                .chars()
                .filter_map(|letter| match letter {
                    'a' => Some(a),
                    'b' => Some(b),
                    _ => None,
                })
                .collect();
            (id, namespaces)
        };
        let known = match parse(known) {
            (None, _) => Known::Nothing,
            (Some(id), namespaces) => namespaces
                .first()
                .map_or(Known::Tagged(id), |netns| Known::Enrolled(id, *netns)),
        };
        let (id, namespaces) = parse(seen);
        let seen = match id {
            None => Seen::Absent,
            Some(id) if namespaces.is_empty() => Seen::Empty(id),
            Some(id) => Seen::Inhabited(id, &namespaces),
        };
        assert_eq!(text(step(known, seen)), expected);
    }

    #[test]
    fn the_first_claim_to_a_cgroup_stands() {
        let pod = |cgroup: &str, name: &str| WantedPod {
            cgroup: cgroup.into(),
            name: name.into(),
            session: "a/b".parse().unwrap(),
            uid: None,
            service_account: None,
        };
        let (kept, refused) = distinct(&[pod("x", "1"), pod("y", "2"), pod("x", "3")]);
        assert_eq!(kept, [pod("x", "1"), pod("y", "2")]);
        assert_eq!(refused, [pod("x", "3")]);
    }
}
