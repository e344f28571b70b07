//! Start-up: from nothing, or from what an earlier agent left, to programs in force, without a window in which a
//! tagged pod's connect goes straight through.

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    path::PathBuf,
    sync::{Mutex, RwLock},
    time::Duration,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, PerCpuArray},
    programs::{Program, ProgramError},
};
use tokio::sync::watch;
use understudy_common::{LAYOUT_VERSION, PROGRAMS, map};

use super::{
    Kernel, MapError, OBJECT, PinError,
    cgroup::{CgroupError, CgroupRoot},
    counters::Rises,
    flows::Flows,
    link::{self, attach_type},
    log, memlock,
    pins::{self, Pins},
};

/// As many as a listener's queue takes, and a sixteenth of the table.
const FLOWS_PER_POD: u32 = 4096;

/// How often a program is loaded again that a signal has kept from it.
const LOAD_RETRIES: u32 = 10;

/// Where and how the kernel side is installed.
#[derive(Debug, Clone)]
pub struct Options {
    /// A directory on a bpffs, for this agent alone.
    pub pin_dir: PathBuf,
    /// How long after the last [`Kernel::beat`] tagged pods' connects are still redirected.
    pub heartbeat_max_age: Duration,
    /// How many connections may be on their way to a listener at one time, over all pods. Decided when the maps
    /// are made; those of an earlier agent keep their size.
    pub flow_capacity: Option<u32>,
    /// How many of them may be one pod's.
    pub flows_per_pod: u32,
    /// Whether the programs see the whole hierarchy's sockets, and not only those made below the root that is given. A
    /// socket is judged where it was made, and may be passed on: one that comes from elsewhere, and is dialled with in a
    /// tagged pod, would go straight through.
    pub whole_hierarchy: bool,
}

impl Options {
    /// With the usual heartbeat and capacity.
    #[must_use]
    pub fn new(pin_dir: impl Into<PathBuf>) -> Self {
        Self {
            pin_dir: pin_dir.into(),
            heartbeat_max_age: Duration::from_secs(1),
            flow_capacity: None,
            flows_per_pod: FLOWS_PER_POD,
            whole_hierarchy: true,
        }
    }
}

/// Why the kernel side can't be installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The pin directory.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The object as a whole.
    #[error("the kernel programs can't be loaded: {0}")]
    Object(#[from] EbpfError),
    /// The object isn't what this agent was built for.
    #[error("the embedded object has no {0}: it belongs to another version of the agent")]
    Missing(&'static str),
    /// A program that the verifier or the kernel refuses.
    #[error("the kernel refuses the program {name}: {source}")]
    Program {
        /// The program.
        name: &'static str,
        /// What the kernel says.
        source: ProgramError,
    },
    /// A program that can't be attached.
    #[error("the program {name} can't be attached to the cgroup root: {source}")]
    Attach {
        /// The program.
        name: &'static str,
        /// What the kernel says.
        source: std::io::Error,
    },
    /// The cgroup to attach to.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A map that can't be used.
    #[error(transparent)]
    Map(#[from] MapError),
}

impl Kernel {
    /// Loads the programs and puts them in force, above the pods' cgroup tree or at its root, in place of an earlier
    /// agent's if there are any.
    ///
    /// Pods that an earlier agent tagged stay tagged, without a listener: their connects are refused until
    /// [`set_pod`](Self::set_pod) gives them one. The heartbeat hasn't begun.
    ///
    /// # Errors
    /// Names what is missing or refused. What was in force before stays so.
    pub fn install(root: &CgroupRoot, options: &Options) -> Result<Self, InstallError> {
        let (object, kernel) = Self::prepare(options)?;
        // From here on a tagged pod is refused, whichever agent's programs see it; and stays so until it has a
        // listener of this agent and this agent's heartbeat.
        kernel.rest()?;
        kernel.silence_pods()?;
        kernel.put_in_force(&object, root, options)?;
        Ok(kernel)
    }

    /// As [`install`](Self::install), but in the place of an agent that runs, serves, and has
    /// [yielded](Self::yield_up): its pods' entries stay as they are, and in force, until they are replaced; and it
    /// beats until then.
    ///
    /// # Errors
    /// As of [`install`](Self::install).
    pub fn succeed(root: &CgroupRoot, options: &Options) -> Result<Self, InstallError> {
        let (object, mut kernel) = Self::prepare(options)?;
        kernel.succeeds = true;
        kernel.put_in_force(&object, root, options)?;
        Ok(kernel)
    }

    /// All that changes nothing in force.
    fn prepare(options: &Options) -> Result<(Ebpf, Self), InstallError> {
        let pins = Pins::claim(&options.pin_dir)?;
        pins.check_maps()?;
        memlock::raise();
        let mut object = load(&pins, options)?;
        for name in PROGRAMS {
            load_program(&mut object, name)?;
        }
        log::follow(&mut object);
        let kernel = take_maps(&mut object, pins, options)?;
        kernel.mark_all()?;
        Ok((object, kernel))
    }

    fn put_in_force(&self, object: &Ebpf, root: &CgroupRoot, options: &Options) -> Result<(), InstallError> {
        let top;
        let root = if options.whole_hierarchy {
            top = root.top()?;
            &top
        } else {
            root
        };
        for name in PROGRAMS {
            let hook = attach_type(name).ok_or(InstallError::Missing(name))?;
            link::put_in_force(&self.pins, root, name, program_fd(object, name)?, hook)
                .map_err(|source| InstallError::Attach { name, source })?;
        }
        Ok(())
    }
}

fn load(pins: &Pins, options: &Options) -> Result<Ebpf, EbpfError> {
    let paths: Vec<_> = pins::maps().map(|name| (name, pins.path(name))).collect();
    let mut loader = EbpfLoader::new();
    for (name, path) in &paths {
        loader.map_pin_path(name, path.as_path());
    }
    if let Some(capacity) = options.flow_capacity {
        loader.map_max_entries(map::FLOWS, capacity);
    }
    loader.load(OBJECT)
}

/// The object with maps of its own that go with it: for finding out what the kernel takes.
pub(super) fn load_unpinned() -> Result<Ebpf, EbpfError> {
    memlock::raise();
    EbpfLoader::new().load(OBJECT)
}

pub(super) fn load_program(object: &mut Ebpf, name: &'static str) -> Result<(), InstallError> {
    let program = object.program_mut(name).ok_or(InstallError::Missing(name))?;
    let mut interrupted = 0;
    loop {
        let loaded = match &mut *program {
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            Program::SockOps(program) => program.load(),
            _ => return Err(InstallError::Missing(name)),
        };
        match loaded {
            // The verifier gives up where a signal has come: of a child that has ended, for one.
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.kind() == std::io::ErrorKind::WouldBlock && interrupted < LOAD_RETRIES =>
            {
                interrupted += 1;
            }
            loaded => return loaded.map_err(|source| InstallError::Program { name, source }),
        }
    }
}

pub(super) fn program_fd<'a>(object: &'a Ebpf, name: &'static str) -> Result<BorrowedFd<'a>, InstallError> {
    let program = object.program(name).ok_or(InstallError::Missing(name))?;
    let fd = program.fd().map_err(|source| InstallError::Program { name, source })?;
    Ok(fd.as_fd())
}

fn take_maps(object: &mut Ebpf, pins: Pins, options: &Options) -> Result<Kernel, InstallError> {
    let heartbeat = Array::try_from(take(object, map::HEARTBEAT)?).map_err(MapError::of(map::HEARTBEAT))?;
    check_layout(&heartbeat, &pins)?;
    Ok(Kernel {
        pods: Mutex::new(HashMap::try_from(take(object, map::PODS)?).map_err(MapError::of(map::PODS))?),
        marks: Mutex::new(Array::try_from(take(object, map::MARKS)?).map_err(MapError::of(map::MARKS))?),
        api_servers: Mutex::new(
            HashMap::try_from(take(object, map::API_SERVERS)?).map_err(MapError::of(map::API_SERVERS))?,
        ),
        flows: Flows::new(
            take(object, map::FLOWS)?,
            take(object, map::HELD)?,
            take(object, map::TAKEN)?,
        )?,
        heartbeat: Mutex::new(heartbeat),
        counters: PerCpuArray::try_from(take(object, map::COUNTERS)?).map_err(MapError::of(map::COUNTERS))?,
        rises: Rises::default(),
        max_age: options.heartbeat_max_age,
        flows_per_pod: options.flows_per_pod,
        api_servers_grown: watch::Sender::new(0),
        declared: Mutex::default(),
        succeeds: false,
        in_charge: RwLock::new(true),
        pins,
    })
}

fn take(object: &mut Ebpf, name: &'static str) -> Result<Map, InstallError> {
    object.take_map(name).ok_or(InstallError::Missing(name))
}

/// The sizes may agree and their meaning still differ.
fn check_layout(heartbeat: &Array<MapData, understudy_common::Heartbeat>, pins: &Pins) -> Result<(), InstallError> {
    let found = heartbeat.get(&0, 0).map_err(MapError::of(map::HEARTBEAT))?.layout;
    if found == 0 || found == LAYOUT_VERSION {
        return Ok(());
    }
    let text = |version: u32| format!("layout version {version}");
    Err(pins
        .other_layout(map::HEARTBEAT, text(found), text(LAYOUT_VERSION))
        .into())
}
