//! The process in a pod: the test's own executable, started again. It reads commands and answers each with a line.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, BufRead as _, Read as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use super::tricks::Tricks;

pub(super) const MARK: &str = "UNDERSTUDY_TEST_DIALLER";
pub(super) const ANSWER: &str = "@@ ";

#[test]
#[ignore = "not a test: what the tests start in their pods"]
fn dialler_process() {
    if std::env::var_os(MARK).is_none() {
        return;
    }
    let mut dialler = Process::default();
    for line in io::stdin().lock().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        println!("{ANSWER}{}", dialler.obey(&words));
    }
}

#[derive(Default)]
struct Process {
    sockets: HashMap<String, Socket>,
    served: Arc<AtomicU32>,
    tricks: Tricks,
}

impl Process {
    fn obey(&mut self, words: &[&str]) -> String {
        match *words {
            ["hello"] => "ok".to_owned(),
            ["set-up"] => {
                self.set_up();
                "ok".to_owned()
            }
            ["no-ipv6"] => {
                // Of addresses the loopback's too, while sockets of the family can still be had.
                std::fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "1").unwrap();
                "ok".to_owned()
            }
            ["dial", name, address] => self.dial(name, address.parse().unwrap(), Protocol::TCP),
            ["dial-from", name, from, address] => {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
                socket.bind(&from.parse::<SocketAddr>().unwrap().into()).unwrap();
                let done = connect(&socket, address.parse().unwrap()).and_then(|()| ends(&socket));
                self.sockets.insert(name.to_owned(), socket);
                answer(done)
            }
            ["fast-open", name, address] => {
                let address: SocketAddr = address.parse().unwrap();
                let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).unwrap();
                let sent = socket.send_to_with_flags(b"hello", &address.into(), libc::MSG_FASTOPEN);
                let done = sent.and_then(|_| ends(&socket));
                self.sockets.insert(name.to_owned(), socket);
                answer(done)
            }
            ["mptcp", name, address] => self.dial(name, address.parse().unwrap(), Protocol::MPTCP),
            ["redial", name, address] => {
                let socket = &self.sockets[name];
                disconnect(socket);
                answer(connect(socket, address.parse().unwrap()).and_then(|()| ends(socket)))
            }
            ["ends", name] => answer(ends(&self.sockets[name])),
            ["close", name] => {
                self.sockets.remove(name).unwrap();
                "ok".to_owned()
            }
            ["churn", address, times] => {
                let address: SocketAddr = address.parse().unwrap();
                let times: u32 = times.parse().unwrap();
                (0..times)
                    .filter(|_| TcpStream::connect(address).is_ok())
                    .count()
                    .to_string()
            }
            ["greetings", address, times] => greetings(address.parse().unwrap(), times.parse().unwrap()),
            ["listen", address] => {
                let listener = TcpListener::bind(address).unwrap();
                let port = listener.local_addr().unwrap().port();
                // Accepts, so that its queue doesn't fill; and holds on to the last few, so that none is reset.
                thread::spawn(move || {
                    let mut open = VecDeque::new();
                    for stream in listener.incoming() {
                        open.push_back(stream);
                        if open.len() > 100 {
                            open.pop_front();
                        }
                    }
                });
                port.to_string()
            }
            ["read", name] => {
                let mut text = String::new();
                match (&self.sockets[name]).read_to_string(&mut text) {
                    Ok(_) => text,
                    Err(error) => error.kind().to_string(),
                }
            }
            ["dial-begin", name, address] => {
                let address: SocketAddr = address.parse().unwrap();
                let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).unwrap();
                socket.set_nonblocking(true).unwrap();
                let done = connect(&socket, address);
                self.sockets.insert(name.to_owned(), socket);
                done.map_or_else(
                    |error| format!("err {}", error.raw_os_error().unwrap_or(0)),
                    |()| "ok".to_owned(),
                )
            }
            ["error", name] => self.sockets[name]
                .take_error()
                .unwrap()
                .and_then(|error| error.raw_os_error())
                .unwrap_or(0)
                .to_string(),
            ["listen-full", address] => {
                let address: SocketAddr = address.parse().unwrap();
                let listener = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).unwrap();
                listener.bind(&address.into()).unwrap();
                listener.listen(0).unwrap();
                // The one that there is room for.
                let first = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).unwrap();
                connect(&first, address).unwrap();
                self.sockets.insert("listener".to_owned(), listener);
                self.sockets.insert("first".to_owned(), first);
                "ok".to_owned()
            }
            ["served"] => self.served.load(Ordering::SeqCst).to_string(),
            ["cookie"] => cookie(&TcpListener::bind("127.0.0.1:0").unwrap()).to_string(),
            _ => self.tricks.obey(&mut self.sockets, words),
        }
    }

    /// The loopback interface, the API server's addresses on it, and something that answers there.
    fn set_up(&self) {
        for arguments in [
            "link set lo up",
            "addr add 10.96.0.1/32 dev lo",
            "addr add 10.96.0.2/32 dev lo",
            "-6 addr add fd00:96::1/128 dev lo nodad",
        ] {
            let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
            assert!(status.success(), "ip {arguments}");
        }
        // The kernel makes an IPv6 address's route a moment after the address.
        super::eventually("the IPv6 address has its route", || {
            let route = Command::new("ip").args(["-6", "route", "get", "fd00:96::1"]).output();
            route.unwrap().status.success()
        });
        for address in [super::API_V4, super::API_V6, super::OTHER_V4] {
            let listener = TcpListener::bind(address).unwrap();
            let served = Arc::clone(&self.served);
            thread::spawn(move || {
                let mut open = Vec::new();
                for stream in listener.incoming().flatten() {
                    served.fetch_add(1, Ordering::SeqCst);
                    open.push(stream);
                }
            });
        }
    }

    fn dial(&mut self, name: &str, address: SocketAddr, protocol: Protocol) -> String {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(protocol)).unwrap();
        let done = connect(&socket, address).and_then(|()| ends(&socket));
        // Kept even where the connect failed: what matters may come after.
        self.sockets.insert(name.to_owned(), socket);
        answer(done)
    }
}

/// Dials, and reads what is said to the end, many times: who said it, in the order in which they were first heard; and
/// every failure.
fn greetings(address: SocketAddr, times: u32) -> String {
    let mut heard: Vec<String> = Vec::new();
    for _ in 0..times {
        let mut text = String::new();
        let said = TcpStream::connect(address).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.read_to_string(&mut text)
        });
        let one = match said {
            Ok(0) => "nothing".to_owned(),
            Ok(_) => text,
            Err(error) => format!("failed:{}", error.kind()).replace(' ', "-"),
        };
        if !heard.contains(&one) || one == "nothing" || one.starts_with("failed") {
            heard.push(one);
        }
    }
    heard.join(",")
}

pub(super) fn connect(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    socket.connect(&address.into())
}

pub(super) fn ends(socket: &Socket) -> io::Result<(SocketAddr, SocketAddr)> {
    let internet = |address: socket2::SockAddr| address.as_socket().ok_or(io::Error::from(io::ErrorKind::InvalidData));
    Ok((internet(socket.local_addr()?)?, internet(socket.peer_addr()?)?))
}

pub(super) fn answer(done: io::Result<(SocketAddr, SocketAddr)>) -> String {
    match done {
        Ok((local, peer)) => format!("ok {local} {peer}"),
        Err(error) => format!("err {}", error.raw_os_error().unwrap_or(0)),
    }
}

/// `connect()` to no address: the socket may then dial again.
fn disconnect(socket: &Socket) {
    let nowhere = libc::sockaddr {
        sa_family: 0,
        sa_data: [0; 14],
    };
    let length = libc::socklen_t::try_from(size_of_val(&nowhere)).unwrap();
    // SAFETY: the address is a whole sockaddr, of the length given.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, length) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

fn cookie(listener: &TcpListener) -> u64 {
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of_val(&cookie)).unwrap();
    // SAFETY: SO_NETNS_COOKIE (71) is a u64, for which there is room.
    let result = unsafe {
        libc::getsockopt(
            listener.as_raw_fd(),
            libc::SOL_SOCKET,
            71,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    cookie
}
