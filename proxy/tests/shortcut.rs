//! Why the hop from a pod to its listener goes over TCP, though both ends are on one machine: what becomes of a connection
//! whose ends are in one socket hash (`proxy-ebpf/src/bin/shortcut.rs`). No agent does it; `docs/performance.md` has the rest.
#![allow(clippy::unwrap_used, reason = "a test's helpers panic as tests do")]

use std::{
    fs::{self, File},
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process, thread,
    time::Duration,
};

use aya::{
    Ebpf,
    maps::SockHash,
    programs::{CgroupAttachMode, SkMsg, SockOps},
};
use understudy::kernel::cgroup;

/// Size of the programs' key: a namespace's cookie, two IPv4 addresses, two ports.
type Ends = [u8; 24];

/// More than any socket's buffers hold, on both ends together.
const MUCH: usize = 96 << 20;
/// What the two ends' buffers may hold by the kernel's own limits (`tcp_wmem` and `tcp_rmem`), twice.
const BOUNDED: usize = 32 << 20;

/// A cgroup of the test's own, with the test in it, so that no other connection of the machine is touched.
struct Place {
    before: PathBuf,
    own: PathBuf,
}

impl Place {
    fn new() -> Self {
        let root = cgroup::mount_point().unwrap();
        let now = fs::read_to_string("/proc/self/cgroup").unwrap();
        let now = now.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
        let place = Self {
            before: root.join(now),
            own: root.join(format!("understudy-shortcut-{}", process::id())),
        };
        fs::create_dir(&place.own).unwrap();
        move_to(&place.own);
        place
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        move_to(&self.before);
        fs::remove_dir(&self.own).unwrap();
    }
}

fn move_to(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), process::id().to_string()).unwrap();
}

/// Puts the programs in force for the connections that are made in the cgroup from now on.
fn cut_short(place: &Place) -> Ebpf {
    let object = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/ebpf/understudy-shortcut.o");
    let object = fs::read(object).unwrap_or_else(|error| panic!("{object}: {error}: run `cargo xtask ebpf`"));
    let mut object = Ebpf::load(&object).unwrap();
    let pairs = {
        let pairs: SockHash<_, Ends> = object.map("PAIRS").unwrap().try_into().unwrap();
        pairs.fd().try_clone().unwrap()
    };
    let pass: &mut SkMsg = object.program_mut("pass").unwrap().try_into().unwrap();
    pass.load().unwrap();
    pass.attach(&pairs).unwrap();
    let pair: &mut SockOps = object.program_mut("pair").unwrap().try_into().unwrap();
    pair.load().unwrap();
    pair.attach(File::open(&place.own).unwrap(), CgroupAttachMode::Single)
        .unwrap();
    object
}

fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

/// The byte at a place in the stream.
fn byte(at: usize) -> u8 {
    (at.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]
}

/// Sends so many bytes in pieces of all sizes, and no more.
fn send(mut stream: TcpStream, total: usize, seed: u64) -> TcpStream {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut sent = 0;
    while sent < total {
        let most = if random.bool() { 100 } else { 200_000 };
        let until = total.min(sent + random.usize(1..=most));
        let piece: Vec<u8> = (sent..until).map(byte).collect();
        stream.write_all(&piece).unwrap();
        sent = until;
    }
    stream.shutdown(Shutdown::Write).unwrap();
    stream
}

/// Reads to the end, at times slowly, and checks every byte.
#[expect(clippy::disallowed_methods, reason = "a slow reader is slow by the clock")]
fn receive(mut stream: &TcpStream, seed: u64) -> usize {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut buffer = vec![0; 300_000];
    let mut got = 0;
    loop {
        let room = random.usize(1..buffer.len());
        if random.u8(..) < 8 {
            thread::sleep(Duration::from_millis(1));
        }
        match stream.read(&mut buffer[..room]).unwrap() {
            0 => return got,
            read => {
                for (index, is) in buffer[..read].iter().enumerate() {
                    assert_eq!(*is, byte(got + index), "the byte at {}", got + index);
                }
                got += read;
            }
        }
    }
}

/// Both ways at once, each ended by itself.
fn exchange(total: usize) {
    let (client, server) = connected();
    let (to_server, to_client) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let senders = [
        thread::spawn(move || send(to_server, total, 1)),
        thread::spawn(move || send(to_client, total, 2)),
    ];
    let at_server = thread::spawn(move || receive(&server, 3));
    assert_eq!(receive(&client, 4), total);
    assert_eq!(at_server.join().unwrap(), total);
    for sender in senders {
        sender.join().unwrap();
    }
}

/// Closed as soon as all is written.
fn close_behind(total: usize) {
    let (client, server) = connected();
    let sender = thread::spawn(move || drop(send(client, total, 5)));
    assert_eq!(receive(&server, 6), total);
    sender.join().unwrap();
}

/// How much a sender gets rid of while nobody reads, up to [`MUCH`].
fn taken_unread() -> usize {
    let (mut client, _server) = connected();
    client.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let piece = vec![7; 64 << 10];
    let mut taken = 0;
    while taken < MUCH {
        match client.write(&piece) {
            Ok(written) => taken += written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    taken
}

/// No byte is lost or comes out of order. But nothing bounds what is sent to who doesn't read (invariant 7), which TCP's own
/// window does. When this fails at the end, the kernel bounds it, and the short-cut is worth another look.
#[test]
fn a_short_cut_loses_no_byte_and_bounds_none() {
    let place = Place::new();
    assert!(taken_unread() < BOUNDED, "TCP by itself");
    let programs = cut_short(&place);
    exchange(16 << 20);
    for _ in 0..50 {
        close_behind(300_000);
    }
    let taken = taken_unread();
    drop(programs);
    assert!(taken >= MUCH, "{taken} bytes were taken, with nobody reading");
}
