//! What the kernel programs count.

/// An index into the map of counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Counter {
    /// Connects that went on as they were.
    Untouched = 0,
    /// Connects turned to a pod's listener.
    Redirected = 1,
    /// Refused: the pod is tagged, but has no listener of the dialled family.
    NoListener = 2,
    /// Refused: the agent hasn't been heard of for too long.
    StaleHeartbeat = 3,
    /// Refused: the socket lives in another network namespace than the pod's listeners.
    ForeignNamespace = 4,
    /// Refused, or left without a record so that the agent refuses it: the flow table or the socket's own
    /// storage is full.
    MapFull = 5,
    /// Likewise: the pod itself holds as many places in the flow table as a pod may.
    PodFull = 6,
}

impl Counter {
    /// Every counter, by index.
    pub const ALL: [Self; 7] = [
        Self::Untouched,
        Self::Redirected,
        Self::NoListener,
        Self::StaleHeartbeat,
        Self::ForeignNamespace,
        Self::MapFull,
        Self::PodFull,
    ];

    /// How many there are.
    #[expect(clippy::cast_possible_truncation, reason = "seven")]
    pub const COUNT: u32 = Self::ALL.len() as u32;

    /// Its place in the map.
    #[must_use]
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self as u32
    }

    /// Its name as metrics have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Untouched => "untouched",
            Self::Redirected => "redirected",
            Self::NoListener => "no_listener",
            Self::StaleHeartbeat => "stale_heartbeat",
            Self::ForeignNamespace => "foreign_namespace",
            Self::MapFull => "map_full",
            Self::PodFull => "pod_full",
        }
    }
}

const _: () = {
    let mut at = 0;
    while at < Counter::ALL.len() {
        assert!(Counter::ALL[at] as usize == at);
        at += 1;
    }
};
