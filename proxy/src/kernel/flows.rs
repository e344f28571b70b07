//! The flow table in the agent's hands: taking records, sweeping away what nobody took, and the counts by which the
//! kernel programs keep any one pod from having all its places.

use std::{
    collections::{BTreeSet, HashMap as StdHashMap},
    ops::RangeInclusive,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aya::maps::{HashMap, Map, MapData};
use bytemuck::Zeroable as _;
use tracing::warn;
use understudy_common::{FLOW_LIFETIME_NS, FlowKey, FlowRecord, map};

use super::{
    Kernel, MapError, boot_ns,
    handle::{BPF_NOEXIST, ignore_absent, lock},
    sys,
};
use crate::pod::{CgroupId, ClientAddr, NetnsCookie, OriginalDst};

/// `linux/bpf.h`: an element is replaced, and none made.
const BPF_EXIST: u64 = 2;
/// How many records are read in one system call: many more than ever share a bucket, and that is the least.
const BATCH: usize = 512;
/// How many batches a walk has at most. It ends with the table, whatever comes and goes meanwhile; this is for kernels
/// that do otherwise.
const BATCHES_MOST: usize = 1 << 16;

/// A connection as the kernel recorded it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// The pod that dialled.
    pub cgroup_id: CgroupId,
    /// The enrolment of that pod at the time.
    pub enrolment: u64,
    /// What it dialled.
    pub original_dst: OriginalDst,
    /// How long ago.
    pub age: Duration,
}

impl Flow {
    /// Too old to be what it seems: its connection would have been accepted long ago.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.age > Duration::from_nanos(FLOW_LIFETIME_NS)
    }

    /// What a record says, now being `now_ns` of the clock that it was written by.
    #[must_use]
    pub fn from_record(record: &FlowRecord, now_ns: u64) -> Self {
        Self {
            cgroup_id: CgroupId(record.cgroup_id),
            enrolment: record.enrolment,
            original_dst: OriginalDst(record.original.into()),
            age: Duration::from_nanos(now_ns.saturating_sub(record.boot_ns)),
        }
    }
}

/// The flow table, and its counts by enrolment.
pub(super) struct Flows {
    /// Locked while a record is looked up and removed: only agents take records, and each a listener's of its own.
    table: Mutex<HashMap<MapData, FlowKey, FlowRecord>>,
    /// The same, to be read through without the lock.
    map: OwnedFd,
    held: Mutex<HashMap<MapData, u64, u64>>,
    taken: Mutex<HashMap<MapData, u64, u64>>,
    /// How many this agent has taken.
    taken_here: AtomicU64,
}

impl Flows {
    pub(super) fn new(flows: Map, held: Map, taken: Map) -> Result<Self, MapError> {
        let data = match &flows {
            Map::HashMap(data) => data.fd().as_fd().try_clone_to_owned(),
            _ => Err(std::io::ErrorKind::InvalidInput.into()),
        };
        Ok(Self {
            map: data.map_err(MapError::system(map::FLOWS))?,
            table: Mutex::new(HashMap::try_from(flows).map_err(MapError::of(map::FLOWS))?),
            held: Mutex::new(HashMap::try_from(held).map_err(MapError::of(map::HELD))?),
            taken: Mutex::new(HashMap::try_from(taken).map_err(MapError::of(map::TAKEN))?),
            taken_here: AtomicU64::new(0),
        })
    }

    /// Begins to count an enrolment: before an entry of it that has a listener is in force, for what isn't counted is
    /// refused.
    pub(super) fn count(&self, enrolment: u64) -> Result<(), MapError> {
        for (counts, name) in [(&self.taken, map::TAKEN), (&self.held, map::HELD)] {
            match lock(counts).insert(enrolment, 0, BPF_NOEXIST) {
                Err(aya::maps::MapError::SyscallError(error))
                    if error.io_error.kind() == std::io::ErrorKind::AlreadyExists => {}
                made => made.map_err(MapError::of(name))?,
            }
        }
        Ok(())
    }

    /// Counts no longer what isn't of `enrolments`.
    pub(super) fn count_only(&self, enrolments: &BTreeSet<u64>) -> Result<(), MapError> {
        for (counts, name) in [(&self.held, map::HELD), (&self.taken, map::TAKEN)] {
            let mut counts = lock(counts);
            let counted: Vec<u64> = counts.keys().collect::<Result<_, _>>().map_err(MapError::of(name))?;
            for enrolment in counted.iter().filter(|enrolment| !enrolments.contains(enrolment)) {
                ignore_absent(counts.remove(enrolment)).map_err(MapError::of(name))?;
            }
        }
        Ok(())
    }

    /// Removes a record if it is as wanted, and counts it as taken.
    fn remove_if(
        &self,
        key: &FlowKey,
        wanted: impl FnOnce(&FlowRecord) -> bool,
    ) -> Result<Option<FlowRecord>, MapError> {
        let mut table = lock(&self.table);
        let record = match table.get(key, 0) {
            Ok(record) if wanted(&record) => record,
            Ok(_) | Err(aya::maps::MapError::KeyNotFound) => return Ok(None),
            Err(error) => return Err(MapError::of(map::FLOWS)(error)),
        };
        if ignore_absent(table.remove(key)).map_err(MapError::of(map::FLOWS))? {
            self.taken_here.fetch_add(1, Ordering::Relaxed);
            self.count_taken(record.enrolment)?;
        }
        Ok(Some(record))
    }

    /// With the table locked. An enrolment that isn't counted any more stays so.
    fn count_taken(&self, enrolment: u64) -> Result<(), MapError> {
        let mut taken = lock(&self.taken);
        let counted = match taken.get(&enrolment, 0) {
            Ok(number) => taken.insert(enrolment, number.wrapping_add(1), BPF_EXIST),
            Err(error) => Err(error),
        };
        ignore_absent(counted).map(drop).map_err(MapError::of(map::TAKEN))
    }

    /// Reads the table through, batch by batch. Nothing is locked meanwhile.
    fn walk(&self, mut each: impl FnMut(&FlowKey, &FlowRecord) -> Result<(), MapError>) -> Result<(), MapError> {
        let mut keys = vec![FlowKey::zeroed(); BATCH];
        let mut records = vec![FlowRecord::zeroed(); BATCH];
        let mut cursor = None;
        for _ in 0..BATCHES_MOST {
            let batch = sys::lookup_batch(self.map.as_fd(), cursor, &mut keys, &mut records)
                .map_err(MapError::system(map::FLOWS))?;
            for (key, record) in keys.iter().zip(&records).take(batch.number) {
                each(key, record)?;
            }
            cursor = batch.next;
            if cursor.is_none() {
                break;
            }
        }
        Ok(())
    }
}

impl Kernel {
    /// Takes the record of a connection that a listener has accepted. A second taking finds none.
    ///
    /// # Errors
    /// Where the map can't be read or written.
    pub fn take_flow(
        &self,
        netns: NetnsCookie,
        client: ClientAddr,
        listener_port: u16,
    ) -> Result<Option<Flow>, MapError> {
        let key = FlowKey::new(netns.0, client.0.into(), listener_port);
        let record = self.flows.remove_if(&key, |_| true)?;
        Ok(record.map(|record| Flow::from_record(&record, boot_ns())))
    }

    /// How many records this agent has removed from the flow table, since it began.
    #[must_use]
    pub fn flows_taken(&self) -> u64 {
        self.flows.taken_here.load(Ordering::Relaxed)
    }

    /// How many connections are on their way to a listener, by walking the table.
    ///
    /// # Errors
    /// Where the map can't be read.
    pub fn flow_count(&self) -> Result<usize, MapError> {
        let mut count = 0;
        self.flows.walk(|_, _| {
            count += 1;
            Ok(())
        })?;
        Ok(count)
    }

    /// How many connections are on their way to listeners of these enrolments.
    ///
    /// # Errors
    /// Where the map can't be read.
    pub fn flows_of(&self, enrolments: &RangeInclusive<u64>) -> Result<usize, MapError> {
        let mut count = 0;
        self.flows.walk(|_, record| {
            count += usize::from(enrolments.contains(&record.enrolment));
            Ok(())
        })?;
        Ok(count)
    }

    /// How many places of the flow table each enrolment holds, as the kernel programs count them.
    ///
    /// # Errors
    /// Where the maps can't be read.
    pub fn flows_held(&self) -> Result<StdHashMap<u64, u64>, MapError> {
        let taken: StdHashMap<u64, u64> = lock(&self.flows.taken)
            .iter()
            .collect::<Result<_, _>>()
            .map_err(MapError::of(map::TAKEN))?;
        let left = |(enrolment, held): (u64, u64)| {
            let taken = taken.get(&enrolment).copied().unwrap_or(0);
            (enrolment, held.saturating_sub(taken))
        };
        lock(&self.flows.held)
            .iter()
            .map(|item| item.map(left))
            .collect::<Result<_, _>>()
            .map_err(MapError::of(map::HELD))
    }

    /// Removes records that nobody will take any more: those of sockets whose close the programs don't see; and counts
    /// no longer the enrolments that are over. Who accepts a connection meanwhile waits for one record at most.
    ///
    /// # Errors
    /// Where a map can't be read or written.
    pub fn sweep_flows(&self) -> Result<usize, MapError> {
        let now_ns = boot_ns();
        let is_stale = |record: &FlowRecord| Flow::from_record(record, now_ns).is_stale();
        let mut swept = 0;
        self.flows.walk(|key, record| {
            // Looked at again once locked: the key may be another connection's by then.
            if is_stale(record) && self.flows.remove_if(key, is_stale)?.is_some() {
                swept += 1;
            }
            Ok(())
        })?;
        if swept > 0 {
            warn!(swept, "flow records that no listener took were removed");
        }
        self.count_present()?;
        Ok(swept)
    }
}
