//! Handing the node over from one agent to the next, so that no connection fails meanwhile: a DaemonSet with `maxSurge`
//! starts the new one beside the old.
//!
//! The one that runs [listens](Incumbent) on a socket in `--run-dir`. The next one, ready but for the kernel, connects
//! and says `yield <layout version> <pin directory>`, the latter as device and inode. The old one stops writing to the kernel, gives the pin directory up, answers
//! `yielded`, and serves on. The new one takes the kernel side over and, once each pod's entry names a listener of its
//! own, says `done`: the old one retires. Should the connection end before, the old one goes on as it did.
//!
//! Only a process of the same user is listened to. What it says decides nothing but who writes to the kernel.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::unistd::geteuid;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};
use understudy_common::LAYOUT_VERSION;

use crate::enrol::Steward;

/// The socket's name in the run directory.
const SOCKET: &str = "handover.sock";
/// How long either may take for its next line. The new agent enrols every pod of the node meanwhile.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long one that is to end waits for the other, which may be about to have taken over.
const LAST_PATIENCE: Duration = Duration::from_secs(2);
/// A line that is longer is not one of ours.
const LONGEST_LINE: u64 = 256;
/// How often an agent that doesn't answer is asked again, and how long after.
const ATTEMPTS: usize = 10;
const PAUSE: Duration = Duration::from_millis(200);

const YIELDED: &str = "yielded";
const DONE: &str = "done";

/// Why a node can't be handed over.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The run directory, or the socket in it.
    #[error("{path}: {source}: give --run-dir a directory on the node that this agent can write to")]
    Socket {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Somebody else's socket.
    #[error("{0} belongs to another user: remove it")]
    Stranger(PathBuf),
    /// The agent that runs says no.
    #[error("the agent that runs on this node doesn't hand over: {0}")]
    Refused(String),
    /// The agent that runs says nothing.
    #[error("the agent that runs on this node doesn't answer: {0}; end it, and start again")]
    Silent(io::Error),
}

/// The agent that runs, on the socket where the next one asks.
#[derive(Debug)]
pub struct Incumbent {
    path: PathBuf,
    temporary: PathBuf,
    listener: UnixListener,
    inode: u64,
    pins: Pins,
}

/// The agent that has yielded to this one, until it is told that all is done. Dropping it before has it go on.
#[derive(Debug)]
pub struct Predecessor {
    stream: BufReader<UnixStream>,
}

impl Predecessor {
    /// Asks the agent that runs on this node to yield `pin_dir`. None where none runs, as far as `run_dir` tells.
    ///
    /// # Errors
    /// Where one runs and doesn't yield.
    pub async fn ask(run_dir: &Path, pin_dir: &Path) -> Result<Option<Self>, HandoverError> {
        let path = run_dir.join(SOCKET);
        let ask = Ask {
            layout: LAYOUT_VERSION,
            pins: Pins::of(pin_dir),
        };
        let mut last = io::Error::from(io::ErrorKind::TimedOut);
        for _ in 0..ATTEMPTS {
            let stream = match UnixStream::connect(&path).await {
                Ok(stream) => stream,
                // Nobody has bound it, or who did is gone.
                Err(error) if is_nobody(&error) => return Ok(None),
                Err(source) => return Err(HandoverError::Socket { path, source }),
            };
            if !is_own(&stream) {
                return Err(HandoverError::Stranger(path));
            }
            let mut stream = BufReader::new(stream);
            match ask_once(&mut stream, &ask).await {
                Ok(answer) if answer == YIELDED => return Ok(Some(Self { stream })),
                Ok(answer) => return Err(HandoverError::Refused(answer)),
                // It was just ending, or handing over to another one, which is to be asked then.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => last = error,
                Err(error) => return Err(HandoverError::Silent(error)),
            }
            sleep(PAUSE).await;
        }
        Err(HandoverError::Silent(last))
    }

    /// Every entry names this agent's listeners: the other one may retire.
    ///
    /// # Errors
    /// Where it has gone meanwhile. That is no harm.
    pub async fn done(mut self) -> io::Result<()> {
        say(&mut self.stream, DONE).await
    }
}

impl Incumbent {
    /// Binds the socket, and makes the directory if need be. An earlier agent's keeps its place until this one serves.
    ///
    /// # Errors
    /// Where it can't be bound.
    pub fn bind(run_dir: &Path, pin_dir: &Path) -> Result<Self, HandoverError> {
        let path = run_dir.join(SOCKET);
        let temporary = run_dir.join(format!("{SOCKET}.{}", std::process::id()));
        let bind = || -> io::Result<(UnixListener, u64)> {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(run_dir)?;
            remove_if_there(&temporary)?;
            let listener = UnixListener::bind(&temporary)?;
            fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
            Ok((listener, fs::symlink_metadata(&temporary)?.ino()))
        };
        match bind() {
            Ok((listener, inode)) => Ok(Self {
                path,
                temporary,
                listener,
                inode,
                pins: Pins::of(pin_dir),
            }),
            Err(source) => Err(HandoverError::Socket { path, source }),
        }
    }

    /// Takes the place of an earlier agent's socket, so that the next one asks here.
    ///
    /// # Errors
    /// Where it can't be.
    pub fn publish(mut self, pin_dir: &Path) -> Result<Self, HandoverError> {
        // The agent has made it by now.
        self.pins = Pins::of(pin_dir);
        // At no time does the path lead nowhere.
        match fs::rename(&self.temporary, &self.path) {
            Ok(()) => Ok(self),
            Err(source) => Err(HandoverError::Socket {
                path: self.path.clone(),
                source,
            }),
        }
    }

    /// Answers until this agent has retired, or `shutdown`. What has begun by then is seen to its end.
    pub async fn serve(mut self, steward: Steward, shutdown: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) if is_own(&stream) => {
                    if yield_to(BufReader::new(stream), self.pins, &steward, &shutdown).await {
                        // The next agent puts its socket in this one's place at this very moment. To look whose it is
                        // and to remove it are two steps: the next one's would be gone.
                        self.inode = 0;
                        return;
                    }
                }
                Ok(_) => warn!("another user's process asks for this node: refused"),
                Err(error) => {
                    warn!(%error, "the hand-over socket");
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

impl Drop for Incumbent {
    fn drop(&mut self) {
        for path in [&self.path, &self.temporary] {
            // Another agent's, if one has come.
            if fs::symlink_metadata(path).is_ok_and(|found| found.ino() == self.inode) {
                let _gone = fs::remove_file(path);
            }
        }
    }
}

/// Removes what agents leave in the run directory, and the directory, if it is empty then.
///
/// # Errors
/// Where it can't be removed. What isn't there is no error.
pub fn remove(run_dir: &Path) -> Result<(), HandoverError> {
    let path = run_dir.join(SOCKET);
    for path in unpublished(run_dir).into_iter().chain([path]) {
        remove_if_there(&path).map_err(|source| HandoverError::Socket { path, source })?;
    }
    if let Err(error) = fs::remove_dir(run_dir) {
        // A mount, or something that isn't ours.
        debug!(%error, directory = %run_dir.display(), "the run directory stays");
    }
    Ok(())
}

/// Sockets of agents that died before theirs took its place. One that somebody listens on is an agent's that starts.
fn unpublished(run_dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(run_dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            let name = entry.file_name();
            let number = name
                .to_str()
                .and_then(|name| name.strip_prefix(SOCKET)?.strip_prefix('.')?.parse::<u32>().ok());
            number.is_some()
        })
        .map(|entry| entry.path())
        .filter(|path| std::os::unix::net::UnixStream::connect(path).is_err_and(|error| is_nobody(&error)))
        .collect()
}

/// One who asks. True once this agent has retired.
async fn yield_to(
    mut stream: BufReader<UnixStream>,
    pins: Pins,
    steward: &Steward,
    shutdown: &CancellationToken,
) -> bool {
    let refusal = match hear(&mut stream).await {
        Ok(line) => line
            .parse::<Ask>()
            .map_or(Some("it doesn't understand what it is asked".to_owned()), |ask| {
                ask.refusal(pins)
            }),
        Err(error) => {
            debug!(%error, "somebody asked for nothing");
            return false;
        }
    };
    if let Some(refusal) = refusal {
        warn!(refusal, "the node isn't handed over");
        let _gone = say(&mut stream, &refusal).await;
        return false;
    }
    if let Err(error) = steward.yield_up().await {
        warn!(%error, "the node isn't handed over");
        let _gone = say(&mut stream, &error.to_string()).await;
        return false;
    }
    let heard = match say(&mut stream, YIELDED).await {
        Ok(()) => hear_before(&mut stream, shutdown).await,
        Err(error) => Err(error),
    };
    let done = match heard {
        Ok(answer) if answer == DONE => true,
        Ok(answer) => {
            warn!(answer, "the next agent says what isn't understood");
            false
        }
        Err(error) => {
            warn!(%error, "the next agent is gone before it took over");
            false
        }
    };
    // Whoever is still there mustn't believe that the node is its own.
    drop(stream);
    if !done && resume(steward).await {
        return false;
    }
    if let Err(error) = steward.retire().await {
        error!(%error, "this agent doesn't retire");
    }
    true
}

/// Goes on. False where another agent is in charge by now, and this one isn't any more.
async fn resume(steward: &Steward) -> bool {
    // A process that dies takes a moment to let go of what it had.
    for _ in 0..ATTEMPTS {
        match steward.resume().await {
            Ok(()) => return true,
            Err(error) => warn!(%error, "this agent can't go on yet"),
        }
        sleep(PAUSE).await;
    }
    error!("another agent has the kernel side: this one retires");
    false
}

/// A pin directory, whatever path leads to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pins {
    device: u64,
    inode: u64,
}

impl Pins {
    /// Zeros for one that isn't there.
    fn of(directory: &Path) -> Self {
        let found = fs::metadata(directory).ok();
        Self {
            device: found.as_ref().map_or(0, fs::Metadata::dev),
            inode: found.as_ref().map_or(0, fs::Metadata::ino),
        }
    }
}

/// What the next agent asks: to be left a pin directory, and that the maps in it mean the same to both.
#[derive(Debug, PartialEq, Eq)]
struct Ask {
    layout: u32,
    pins: Pins,
}

#[derive(Debug, PartialEq, Eq)]
struct NotAsked;

impl Ask {
    fn refusal(&self, pins: Pins) -> Option<String> {
        if self.pins != pins {
            Some("it stands on another --pin-dir: give this agent a --run-dir of its own".to_owned())
        } else if self.layout != LAYOUT_VERSION {
            let other = self.layout;
            Some(format!(
                "it lays its maps out as version {LAYOUT_VERSION}, and this one as {other}: drain the node, and end it first"
            ))
        } else {
            None
        }
    }
}

impl std::fmt::Display for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Pins { device, inode } = self.pins;
        write!(f, "yield {} {device}:{inode}", self.layout)
    }
}

impl std::str::FromStr for Ask {
    type Err = NotAsked;

    fn from_str(line: &str) -> Result<Self, NotAsked> {
        let parse = || -> Option<Self> {
            let (layout, pins) = line.strip_prefix("yield ")?.split_once(' ')?;
            let (device, inode) = pins.split_once(':')?;
            Some(Self {
                layout: layout.parse().ok()?,
                pins: Pins {
                    device: device.parse().ok()?,
                    inode: inode.parse().ok()?,
                },
            })
        };
        parse().ok_or(NotAsked)
    }
}

async fn ask_once(stream: &mut BufReader<UnixStream>, ask: &Ask) -> io::Result<String> {
    say(stream, &ask.to_string()).await?;
    hear(stream).await
}

async fn say(stream: &mut BufReader<UnixStream>, line: &str) -> io::Result<()> {
    stream.write_all(format!("{line}\n").as_bytes()).await
}

async fn hear(stream: &mut BufReader<UnixStream>) -> io::Result<String> {
    let mut line = String::new();
    let mut limited = stream.take(LONGEST_LINE);
    // Too late, or nothing.
    let _length = timeout(PATIENCE, limited.read_line(&mut line)).await??;
    match line.strip_suffix('\n') {
        Some(line) => Ok(line.to_owned()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Hears what the next agent says; of one that is to end, for a short time only.
async fn hear_before(stream: &mut BufReader<UnixStream>, shutdown: &CancellationToken) -> io::Result<String> {
    let ended = async {
        shutdown.cancelled().await;
        sleep(LAST_PATIENCE).await;
    };
    tokio::select! {
        heard = hear(stream) => heard,
        () = ended => Err(io::Error::new(io::ErrorKind::TimedOut, "this agent is to end, and waits no longer")),
    }
}

fn is_own(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == geteuid().as_raw())
}

fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const HERE: Pins = Pins { device: 3, inode: 77 };

    #[rstest]
    #[case("yield 1 3:77", Some((1, HERE)))]
    #[case("yield 12 0:0", Some((12, Pins { device: 0, inode: 0 })))]
    #[case("yield 1", None)]
    #[case("yield -1 3:77", None)]
    #[case("yield 1 3", None)]
    #[case("done", None)]
    #[case("", None)]
    fn what_is_asked(#[case] line: &str, #[case] expected: Option<(u32, Pins)>) {
        let ask = expected.map(|(layout, pins)| Ask { layout, pins });
        assert_eq!(line.parse().ok(), ask);
        if let Some(ask) = ask {
            assert_eq!(ask.to_string(), line);
        }
    }

    #[rstest]
    #[case(LAYOUT_VERSION, HERE, None)]
    #[case(LAYOUT_VERSION + 1, HERE, Some("drain the node"))]
    #[case(LAYOUT_VERSION, Pins { inode: 78, ..HERE }, Some("--run-dir of its own"))]
    fn what_is_refused(#[case] layout: u32, #[case] pins: Pins, #[case] says: Option<&str>) {
        match (Ask { layout, pins }.refusal(HERE), says) {
            (None, None) => {}
            (Some(refusal), Some(says)) => assert!(refusal.contains(says), "{refusal}"),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn what_agents_that_died_leave_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let run_dir = directory.path().join("run");
        fs::create_dir(&run_dir).unwrap();
        for name in [SOCKET, "handover.sock.7", "handover.sock.x"] {
            drop(std::os::unix::net::UnixListener::bind(run_dir.join(name)).unwrap());
        }
        let starting = Incumbent::bind(&run_dir, directory.path()).unwrap();
        remove(&run_dir).unwrap();
        let left = |name: &str| run_dir.join(name).exists();
        assert!(!left(SOCKET) && !left("handover.sock.7") && left("handover.sock.x"));
        assert!(starting.temporary.exists(), "an agent's that starts");
        drop(starting);
        fs::remove_file(run_dir.join("handover.sock.x")).unwrap();
        drop(std::os::unix::net::UnixListener::bind(run_dir.join("handover.sock.8")).unwrap());
        remove(&run_dir).unwrap();
        assert!(!run_dir.exists());
    }

    #[tokio::test]
    async fn where_nobody_is_nobody_answers() {
        let directory = tempfile::tempdir().unwrap();
        let (run_dir, pin_dir) = (directory.path().join("run"), directory.path());
        assert!(Predecessor::ask(&run_dir, pin_dir).await.unwrap().is_none());
        // Left by one that died.
        fs::create_dir(&run_dir).unwrap();
        drop(std::os::unix::net::UnixListener::bind(run_dir.join(SOCKET)).unwrap());
        assert!(Predecessor::ask(&run_dir, pin_dir).await.unwrap().is_none());
        remove(&run_dir).unwrap();
        assert!(!run_dir.exists());
        remove(&run_dir).unwrap();
    }

    #[tokio::test]
    async fn the_socket_is_for_its_user_alone_and_goes_with_its_agent() {
        let directory = tempfile::tempdir().unwrap();
        let run_dir = directory.path().join("run");
        let bind = || Incumbent::bind(&run_dir, directory.path()).unwrap();
        let first = bind().publish(directory.path()).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&run_dir), mode(&run_dir.join(SOCKET))), (0o700, 0o600));
        let second = bind().publish(directory.path()).unwrap();
        drop(first);
        assert_eq!(fs::read_dir(&run_dir).unwrap().count(), 1, "the second's stays");
        drop(second);
        assert_eq!(fs::read_dir(&run_dir).unwrap().count(), 0);
    }
}
