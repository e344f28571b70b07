//! Ways of dialling that a workload may try beside `connect()` with a socket of its own making.

use std::{
    collections::HashMap,
    io::{self, IoSlice, IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    net::{SocketAddr, UdpSocket},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::net::UnixDatagram,
    },
    time::{Duration, Instant},
};

use io_uring::{IoUring, opcode, squeue::Flags, types::Fd};
use nix::{
    cmsg_space, libc,
    sched::{CloneFlags, unshare},
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg},
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::dialler::{answer, connect, ends};

/// What they leave for later.
#[derive(Default)]
pub(super) struct Tricks {
    rings: HashMap<String, IoUring>,
    mailbox: Option<UnixDatagram>,
}

impl Tricks {
    pub(super) fn obey(&mut self, sockets: &mut HashMap<String, Socket>, words: &[&str]) -> String {
        match *words {
            ["socket", name, kind] => {
                let (domain, protocol) = match kind {
                    "v4" => (Domain::IPV4, Protocol::TCP),
                    "v6" => (Domain::IPV6, Protocol::TCP),
                    "mptcp" => (Domain::IPV4, Protocol::MPTCP),
                    _ => panic!("{kind}"),
                };
                let socket = Socket::new(domain, Type::STREAM, Some(protocol)).unwrap();
                sockets.insert(name.to_owned(), socket);
                "ok".to_owned()
            }
            ["connect", name, address] => dial(&sockets[name], address),
            ["bind", name, address] => {
                let address: SocketAddr = address.parse().unwrap();
                said(sockets[name].bind(&address.into()))
            }
            ["port", name] => sockets[name]
                .local_addr()
                .unwrap()
                .as_socket()
                .unwrap()
                .port()
                .to_string(),
            ["device", name, device] => said(sockets[name].bind_device(Some(device.as_bytes()))),
            ["non-blocking", name] => said(sockets[name].set_nonblocking(true)),
            // A listener that shares its port with whoever lets it.
            ["squat", name, address] => {
                let address: SocketAddr = address.parse().unwrap();
                let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).unwrap();
                socket.set_reuse_address(true).unwrap();
                socket.set_reuse_port(true).unwrap();
                let done = socket.bind(&address.into()).and_then(|()| socket.listen(16));
                socket.set_nonblocking(true).unwrap();
                sockets.insert(name.to_owned(), socket);
                said(done)
            }
            ["accepted", name] => match sockets[name].accept() {
                Ok((mut stream, _)) => {
                    let mut heard = [0; 64];
                    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
                    let length = stream.read(&mut heard).unwrap_or(0);
                    format!("one:{}", String::from_utf8_lossy(&heard[..length]))
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => "none".to_owned(),
                Err(error) => said(Err(error)),
            },
            ["fast-open-connect", name, address] => {
                std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "5").unwrap();
                let address: SocketAddr = address.parse().unwrap();
                let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).unwrap();
                set_fast_open_connect(&socket);
                let done = connect(&socket, address);
                sockets.insert(name.to_owned(), socket);
                said(done)
            }
            ["say", name, text] => said((&sockets[name]).write_all(text.as_bytes())),
            ["reset", name] => {
                sockets[name].set_linger(Some(Duration::ZERO)).unwrap();
                sockets.remove(name);
                "ok".to_owned()
            }
            ["datagram", address] => datagram(address.parse().unwrap()),
            ["raw-syn", from, to] => raw_syn(from.parse().unwrap(), to.parse().unwrap()),
            ["own-cgroup-namespace"] => said(unshare(CloneFlags::CLONE_NEWCGROUP).map_err(io::Error::from)),
            ["in-threaded", cgroup, name, address] => {
                let socket = &sockets[name];
                std::thread::scope(|scope| {
                    let thread = scope.spawn(|| {
                        let own = nix::unistd::gettid().to_string();
                        std::fs::write(format!("{cgroup}/cgroup.threads"), own).unwrap();
                        dial(socket, address)
                    });
                    thread.join().unwrap()
                })
            }
            _ => self.obey_more(sockets, words),
        }
    }

    fn obey_more(&mut self, sockets: &mut HashMap<String, Socket>, words: &[&str]) -> String {
        match *words {
            ["mailbox", path] => {
                self.mailbox = Some(UnixDatagram::bind(path).unwrap());
                "ok".to_owned()
            }
            ["give", name, path] => {
                give(path, sockets[name].as_raw_fd());
                "ok".to_owned()
            }
            ["take", name] => {
                sockets.insert(name.to_owned(), take(self.mailbox.as_ref().unwrap()).into());
                "ok".to_owned()
            }
            ["ring", name, kind] => {
                let ring = match kind {
                    "polled" => IoUring::builder().setup_sqpoll(10_000).build(8),
                    _ => IoUring::new(8),
                };
                self.rings.insert(name.to_owned(), ring.unwrap());
                "ok".to_owned()
            }
            ["ring-connect", ring, name, address, how] => {
                let flags = if how == "worker" { Flags::ASYNC } else { Flags::empty() };
                let done = ring_connect(self.rings.get_mut(ring).unwrap(), &sockets[name], address, flags);
                answer(done.and_then(|()| ends(&sockets[name])))
            }
            _ => panic!("{words:?}"),
        }
    }
}

fn dial(socket: &Socket, address: &str) -> String {
    answer(connect(socket, address.parse().unwrap()).and_then(|()| ends(socket)))
}

fn said(done: io::Result<()>) -> String {
    done.map_or_else(
        |error| format!("err {}", error.raw_os_error().unwrap_or(0)),
        |()| "ok".to_owned(),
    )
}

/// `connect()` chooses the way, and the first that is sent dials.
fn set_fast_open_connect(socket: &Socket) {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on)).unwrap();
    // SAFETY: the option is an int.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_FASTOPEN_CONNECT,
            (&raw const on).cast(),
            length,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

fn give(path: &str, fd: RawFd) {
    let sender = UnixDatagram::unbound().unwrap();
    let fds = [fd];
    let to = UnixAddr::new(path).unwrap();
    let message = [IoSlice::new(b"a socket")];
    sendmsg(
        sender.as_raw_fd(),
        &message,
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::empty(),
        Some(&to),
    )
    .unwrap();
}

fn take(mailbox: &UnixDatagram) -> OwnedFd {
    let mut text = [0; 16];
    let mut message = [IoSliceMut::new(&mut text)];
    let mut space = cmsg_space!(RawFd);
    let received = recvmsg::<UnixAddr>(mailbox.as_raw_fd(), &mut message, Some(&mut space), MsgFlags::empty()).unwrap();
    let fds = received.cmsgs().unwrap().find_map(|message| match message {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel has just put it into this process, and nobody else knows of it.
    unsafe { OwnedFd::from_raw_fd(fds.unwrap()) }
}

fn ring_connect(ring: &mut IoUring, socket: &Socket, address: &str, flags: Flags) -> io::Result<()> {
    let address = SockAddr::from(address.parse::<SocketAddr>().unwrap());
    let entry = opcode::Connect::new(Fd(socket.as_raw_fd()), address.as_ptr().cast(), address.len())
        .build()
        .flags(flags);
    // SAFETY: the address lives until the answer has come, below; so does the socket.
    unsafe { ring.submission().push(&entry) }.unwrap();
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().unwrap().result();
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    Ok(())
}

/// Whether a datagram arrives at somebody who listens there.
fn datagram(address: SocketAddr) -> String {
    let there = UdpSocket::bind(address).unwrap();
    there.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let here = UdpSocket::bind("0.0.0.0:0").unwrap();
    let sent = here.connect(address).and_then(|()| here.send(b"hello").map(drop));
    if sent.is_err() {
        return said(sent);
    }
    said(there.recv(&mut [0; 16]).map(drop))
}

/// Sends the SYN of a TCP of its own; whether it is answered with SYN and ACK.
fn raw_syn(from: std::net::SocketAddrV4, to: std::net::SocketAddrV4) -> String {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let address = |at: std::net::SocketAddrV4| SockAddr::from(SocketAddr::from((*at.ip(), 0)));
    socket.bind(&address(from)).unwrap();
    let mut segment = [0_u8; 20];
    segment[0..2].copy_from_slice(&from.port().to_be_bytes());
    segment[2..4].copy_from_slice(&to.port().to_be_bytes());
    segment[12] = 5 << 4;
    segment[13] = 0x02;
    segment[14..16].copy_from_slice(&1024_u16.to_be_bytes());
    let pseudo = [&from.ip().octets()[..], &to.ip().octets(), &[0, 6, 0, 20], &segment].concat();
    let mut sum: u32 = pseudo
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    segment[16..18].copy_from_slice(&(!u16::try_from(sum).unwrap()).to_be_bytes());
    socket.send_to(&segment, &address(to)).unwrap();
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        let mut packet = [MaybeUninit::new(0); 128];
        let Ok(length) = socket.recv(&mut packet) else { break };
        // SAFETY: all of it was initialised.
        let packet: Vec<u8> = packet[..length]
            .iter()
            .map(|byte| unsafe { byte.assume_init() })
            .collect();
        let answer = &packet[20..];
        let ports = [to.port().to_be_bytes(), from.port().to_be_bytes()].concat();
        if answer[0..4] == ports[..] && answer[13] & 0x12 == 0x12 {
            return "answered".to_owned();
        }
    }
    "silence".to_owned()
}
