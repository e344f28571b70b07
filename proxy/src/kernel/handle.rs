//! The maps in the agent's hands.

use std::{
    collections::BTreeSet,
    fmt,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use tokio::sync::watch;
use understudy_common::{Counter, Endpoint, Heartbeat, LAYOUT_VERSION, PodEntry, map, mark};

use super::{Counters, MapError, PinError, boot_ns, counters::Rises, flows::Flows, pins::Pins};
use crate::pod::CgroupId;

/// `linux/bpf.h`: an element is made, and none replaced.
pub(super) const BPF_NOEXIST: u64 = 1;

/// The installed kernel programs. Dropping it leaves them in force, and soon refusing every tagged pod's connects
/// to the API server: the heartbeat stops.
pub struct Kernel {
    pub(super) pods: Mutex<HashMap<MapData, u64, PodEntry>>,
    pub(super) marks: Mutex<Array<MapData, u32>>,
    pub(super) api_servers: Mutex<HashMap<MapData, Endpoint, u32>>,
    pub(super) flows: Flows,
    pub(super) heartbeat: Mutex<Array<MapData, Heartbeat>>,
    pub(super) counters: PerCpuArray<MapData, u64>,
    pub(super) rises: Rises,
    pub(super) max_age: Duration,
    /// How many places in the flow table an enrolment may hold.
    pub(super) flows_per_pod: u32,
    /// Goes up whenever an address comes to the API server's.
    pub(super) api_servers_grown: watch::Sender<u64>,
    /// What [`Kernel::set_api_servers`] was told last.
    pub(super) declared: Mutex<BTreeSet<SocketAddr>>,
    /// Whether the pods' entries are another agent's, which keeps what it finds.
    pub(super) succeeds: bool,
    /// Whether this agent is the one that writes the maps. Held to read while something is written.
    pub(super) in_charge: RwLock<bool>,
    /// Claimed for as long as it is.
    pub(super) pins: Pins,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel")
            .field("pins", &self.pins)
            .finish_non_exhaustive()
    }
}

/// Why an agent that has yielded can't go on.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// The pin directory isn't to be had.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A map.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// A poisoned lock guards a map handle, which has no state that a panic could have left half-done.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removing what isn't there is no error: sockets close at any time.
pub(super) fn ignore_absent(result: Result<(), aya::maps::MapError>) -> Result<bool, aya::maps::MapError> {
    match result {
        Ok(()) => Ok(true),
        Err(aya::maps::MapError::KeyNotFound) => Ok(false),
        Err(aya::maps::MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

fn enrolments(pods: &HashMap<MapData, u64, PodEntry>) -> Result<BTreeSet<u64>, MapError> {
    pods.iter()
        .map(|item| item.map(|(_, entry)| entry.enrolment))
        .collect::<Result<_, _>>()
        .map_err(MapError::of(map::PODS))
}

/// The agent that has yielded reads, takes the flows of its own listeners, and beats; of the rest of what follows it
/// writes nothing, and that is no error. Another agent writes it. But it [adds](Kernel::add_pod) what isn't there.
impl Kernel {
    /// Tags a pod, or replaces its entry, in one step.
    ///
    /// # Errors
    /// Where the map can't be written, being full for one.
    pub fn set_pod(&self, pod: CgroupId, entry: &PodEntry) -> Result<(), MapError> {
        let mut pods = lock(&self.pods);
        self.if_in_charge(|| {
            if entry.port4 != 0 || entry.port6 != 0 {
                self.count(&pods, entry.enrolment)?;
            }
            self.mark(pod)?;
            pods.insert(pod.0, entry, 0).map_err(MapError::of(map::PODS))
        })
    }

    /// Before its entry is there: a pod without its mark isn't looked for, and so would go straight through.
    fn mark(&self, pod: CgroupId) -> Result<(), MapError> {
        lock(&self.marks)
            .set(mark(pod.0), 1, 0)
            .map_err(MapError::of(map::MARKS))
    }

    /// Sets the marks of all pods that are tagged, whatever the map was that they were in.
    pub(super) fn mark_all(&self) -> Result<(), MapError> {
        self.pods()?.iter().try_for_each(|(pod, _)| self.mark(*pod))
    }

    /// Begins to count an enrolment. Those that are over make room for it, where there is none.
    fn count(&self, pods: &HashMap<MapData, u64, PodEntry>, enrolment: u64) -> Result<(), MapError> {
        if self.flows.count(enrolment).is_ok() {
            return Ok(());
        }
        self.flows.count_only(&enrolments(pods)?)?;
        self.flows.count(enrolment)
    }

    /// Counts flows of the enrolments that entries name, and of no others.
    pub(super) fn count_present(&self) -> Result<(), MapError> {
        // Locked throughout, or an enrolment that is counted and not in its entry yet would be taken for one that is over.
        let pods = lock(&self.pods);
        self.if_in_charge(|| self.flows.count_only(&enrolments(&pods)?))
    }

    /// Tags a pod that isn't tagged, and leaves the entry of one that is as it stands. Also an agent that has yielded
    /// may: until the next one has looked around, a pod that appears would go straight through.
    ///
    /// # Errors
    /// Where the map can't be written, being full for one.
    pub fn add_pod(&self, pod: CgroupId, entry: &PodEntry) -> Result<(), MapError> {
        self.mark(pod)?;
        match lock(&self.pods).insert(pod.0, entry, BPF_NOEXIST) {
            Err(aya::maps::MapError::SyscallError(error))
                if error.io_error.kind() == std::io::ErrorKind::AlreadyExists =>
            {
                Ok(())
            }
            added => added.map_err(MapError::of(map::PODS)),
        }
    }

    /// Stops writing, and gives the pin directory up to another agent.
    pub fn yield_up(&self) {
        let mut in_charge = self.in_charge.write().unwrap_or_else(PoisonError::into_inner);
        *in_charge = false;
        self.pins.release();
    }

    /// Undoes [`yield_up`](Self::yield_up), when the other agent came to nothing. Of what that one wrote, the API
    /// server's addresses are set right; the pods' entries are for the caller.
    ///
    /// # Errors
    /// Where another agent has the pin directory, or the map can't be written.
    pub fn resume(&self) -> Result<(), ResumeError> {
        {
            let mut in_charge = self.in_charge.write().unwrap_or_else(PoisonError::into_inner);
            self.pins.reclaim()?;
            *in_charge = true;
        }
        let declared = lock(&self.declared).clone();
        Ok(self.set_api_servers(&declared)?)
    }

    /// Whether this agent took over from one that runs: what that one wrote is in force until it is replaced.
    #[must_use]
    pub const fn succeeds(&self) -> bool {
        self.succeeds
    }

    fn if_in_charge<E>(&self, write: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let in_charge = self.in_charge.read().unwrap_or_else(PoisonError::into_inner);
        if *in_charge { write() } else { Ok(()) }
    }

    /// Unties a pod: its connects go straight through from now on.
    ///
    /// # Errors
    /// Where the map can't be written.
    pub fn remove_pod(&self, pod: CgroupId) -> Result<(), MapError> {
        self.if_in_charge(|| ignore_absent(lock(&self.pods).remove(&pod.0)).map(drop))
            .map_err(MapError::of(map::PODS))
    }

    /// Whether a pod is tagged, with or without listeners.
    ///
    /// # Errors
    /// Where the map can't be read.
    pub fn is_tagged(&self, pod: CgroupId) -> Result<bool, MapError> {
        match lock(&self.pods).get(&pod.0, 0) {
            Ok(_) => Ok(true),
            Err(aya::maps::MapError::KeyNotFound) => Ok(false),
            Err(error) => Err(MapError::of(map::PODS)(error)),
        }
    }

    /// A pod's entry, as the kernel has it.
    ///
    /// # Errors
    /// Where the map can't be read.
    pub fn pod(&self, pod: CgroupId) -> Result<Option<PodEntry>, MapError> {
        match lock(&self.pods).get(&pod.0, 0) {
            Ok(entry) => Ok(Some(entry)),
            Err(aya::maps::MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(MapError::of(map::PODS)(error)),
        }
    }

    /// The tagged pods, as the kernel has them.
    ///
    /// # Errors
    /// Where the map can't be read.
    pub fn pods(&self) -> Result<Vec<(CgroupId, PodEntry)>, MapError> {
        lock(&self.pods)
            .iter()
            .map(|item| item.map(|(id, entry)| (CgroupId(id), entry)))
            .collect::<Result<_, _>>()
            .map_err(MapError::of(map::PODS))
    }

    /// Leaves every tagged pod without a listener, so that its connects are refused.
    pub(super) fn silence_pods(&self) -> Result<(), MapError> {
        for (id, entry) in self.pods()? {
            self.set_pod(id, &PodEntry::without_listener(entry.enrolment))?;
        }
        Ok(())
    }

    /// Says which addresses are the API server's. What is new comes first: no address goes missing on the way.
    ///
    /// # Errors
    /// Where the map can't be read or written, being full for one.
    pub fn set_api_servers(&self, addresses: &BTreeSet<SocketAddr>) -> Result<(), MapError> {
        lock(&self.declared).clone_from(addresses);
        let wanted: Vec<Endpoint> = addresses.iter().map(|address| Endpoint::from(*address)).collect();
        let mut servers = lock(&self.api_servers);
        let mut grown = false;
        let write = || -> Result<(), aya::maps::MapError> {
            let before = servers.keys().collect::<Result<Vec<_>, _>>()?;
            for endpoint in &wanted {
                servers.insert(endpoint, 1, 0)?;
            }
            for endpoint in before.iter().filter(|endpoint| !wanted.contains(endpoint)) {
                ignore_absent(servers.remove(endpoint))?;
            }
            grown = wanted.iter().any(|endpoint| !before.contains(endpoint));
            Ok(())
        };
        self.if_in_charge(write).map_err(MapError::of(map::API_SERVERS))?;
        if grown {
            self.api_servers_grown.send_modify(|times| *times += 1);
        }
        Ok(())
    }

    /// Which addresses are the API server's, as the kernel has them.
    ///
    /// # Errors
    /// Where the map can't be read.
    pub fn api_servers(&self) -> Result<BTreeSet<SocketAddr>, MapError> {
        lock(&self.api_servers)
            .keys()
            .map(|key| key.map(SocketAddr::from))
            .collect::<Result<_, _>>()
            .map_err(MapError::of(map::API_SERVERS))
    }

    /// Changes whenever an address has come to the API server's.
    #[must_use]
    pub fn api_servers_grown(&self) -> watch::Receiver<u64> {
        self.api_servers_grown.subscribe()
    }

    /// A sign of life. To be given a few times in each [`Options::heartbeat_max_age`](super::Options).
    ///
    /// # Errors
    /// Where the map can't be written.
    pub fn beat(&self) -> Result<(), MapError> {
        // Also one that has yielded: its listeners may still be in use, and they are served.
        self.write_heartbeat(boot_ns())
    }

    /// How old the last sign of life is, whoever gave it, and how old it may be; no age where it was withdrawn.
    ///
    /// # Errors
    /// Where the map can't be read.
    pub fn heartbeat(&self) -> Result<(Option<Duration>, Duration), MapError> {
        let beat = lock(&self.heartbeat).get(&0, 0).map_err(MapError::of(map::HEARTBEAT))?;
        let age = (beat.boot_ns > 0).then(|| Duration::from_nanos(boot_ns().saturating_sub(beat.boot_ns)));
        Ok((age, Duration::from_nanos(beat.max_age_ns)))
    }

    /// Whether this agent is the one that writes the maps.
    #[must_use]
    pub fn is_in_charge(&self) -> bool {
        *self.in_charge.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Withdraws the sign of life: connects of tagged pods are refused at once.
    ///
    /// # Errors
    /// Where the map can't be written.
    pub fn rest(&self) -> Result<(), MapError> {
        self.if_in_charge(|| self.write_heartbeat(0))
    }

    fn write_heartbeat(&self, boot_ns: u64) -> Result<(), MapError> {
        let max_age_ns = u64::try_from(self.max_age.as_nanos()).unwrap_or(u64::MAX);
        let beat = Heartbeat {
            boot_ns,
            max_age_ns,
            layout: LAYOUT_VERSION,
            flows_per_pod: self.flows_per_pod,
        };
        lock(&self.heartbeat)
            .set(0, beat, 0)
            .map_err(MapError::of(map::HEARTBEAT))
    }

    /// The programs' counters.
    ///
    /// # Errors
    /// Where the map can't be read.
    pub fn counters(&self) -> Result<Counters, MapError> {
        let counters =
            Counters::from_fn(|counter| self.counters.get(&counter.index(), 0).map(|cpus| cpus.iter().sum()))
                .map_err(MapError::of(map::COUNTERS))?;
        self.rises.note(&counters, Instant::now());
        Ok(counters)
    }

    /// How long ago one of them was seen to go up, where it was since this agent looks: now, or when they were
    /// [read](Self::counters) last.
    ///
    /// # Errors
    /// Where the map can't be read.
    pub fn since_rise(&self, counter: Counter) -> Result<Option<Duration>, MapError> {
        self.counters()?;
        Ok(self.rises.since(counter, Instant::now()))
    }
}
