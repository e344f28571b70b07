//! The kernel's socket diagnostics as bytes on a netlink socket (`sock_diag(7)`): asking for a namespace's TCP
//! sockets, and for the end of one. Numbers are those of `linux/sock_diag.h` and `linux/inet_diag.h`. Plain data in
//! and out; the socket is [`tcp`](super::tcp)'s.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// `NETLINK_SOCK_DIAG`.
pub(crate) const PROTOCOL: i32 = 4;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
/// The length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// The length of `struct inet_diag_msg`, after which come attributes.
const MESSAGE: usize = 72;
/// Where `struct inet_diag_sockid` lies in `inet_diag_msg`, and its length.
const ID: usize = 4;
const ID_LENGTH: usize = 48;
const INET_DIAG_CGROUP_ID: u16 = 21;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;

/// The states of a socket that has dialled and may still carry something, as bits of `enum tcp_state`: `SYN_SENT`
/// (2), `ESTABLISHED` (1), `FIN_WAIT1` (4), `FIN_WAIT2` (5), `CLOSE_WAIT` (8).
const DIALLED: u32 = 1 << 2 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8;

/// The families that a dump has to be asked for one by one.
pub(crate) const FAMILIES: [u8; 2] = [AF_INET, AF_INET6];

/// A TCP socket as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TcpSocket {
    /// The other end, an IPv4-mapped address as IPv4.
    pub(crate) peer: SocketAddr,
    /// The cgroup that its maker was in; none where the kernel doesn't say (before 5.8).
    pub(crate) cgroup: Option<u64>,
    family: u8,
    /// `struct inet_diag_sockid` as it came: addresses, ports and the cookie that no other socket has.
    id: [u8; ID_LENGTH],
}

/// One message of the kernel's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A socket.
    Socket(TcpSocket),
    /// That was all.
    Done,
    /// An error number, or 0 for "it is done".
    Status(i32),
    /// The sockets changed while they were listed, so that one may be missing.
    Interrupted,
}

/// Asks for the sockets of a family that have dialled.
pub(crate) fn dump(family: u8) -> Vec<u8> {
    request(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, family, &[0; ID_LENGTH])
}

/// Asks for a socket's end: its owner gets `ECONNABORTED`, and the other end a reset.
pub(crate) fn destroy(socket: &TcpSocket) -> Vec<u8> {
    request(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, socket.family, &socket.id)
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn request(kind: u16, flags: u16, family: u8, id: &[u8; ID_LENGTH]) -> Vec<u8> {
    /// `HEADER`, eight bytes, and `ID_LENGTH`.
    const LENGTH: u32 = 72;
    let mut bytes = Vec::with_capacity(LENGTH as usize);
    bytes.extend(LENGTH.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // A sequence number, and the port, which the kernel knows.
    bytes.extend([0; 8]);
    bytes.extend([family, IPPROTO_TCP, 0, 0]);
    bytes.extend(DIALLED.to_ne_bytes());
    bytes.extend(id);
    bytes
}

/// Reads what one receive brought. What isn't understood is passed over.
pub(crate) fn answers(mut bytes: &[u8]) -> Vec<Answer> {
    let mut answers = Vec::new();
    while let (Some(length), Some(kind), Some(flags)) = (u32_at(bytes, 0), u16_at(bytes, 4), u16_at(bytes, 6)) {
        let length = length as usize;
        let Some(payload) = bytes.get(HEADER..length) else {
            break;
        };
        if flags & NLM_F_DUMP_INTR != 0 {
            answers.push(Answer::Interrupted);
        }
        match kind {
            SOCK_DIAG_BY_FAMILY => answers.extend(socket(payload).map(Answer::Socket)),
            NLMSG_DONE => answers.push(Answer::Done),
            NLMSG_ERROR => {
                answers.extend(u32_at(payload, 0).map(|code| Answer::Status(code.cast_signed().wrapping_neg())));
            }
            _ => {}
        }
        bytes = bytes.get(align(length)..).unwrap_or_default();
    }
    answers
}

fn socket(message: &[u8]) -> Option<TcpSocket> {
    let family = *message.first()?;
    let id: [u8; ID_LENGTH] = message.get(ID..ID + ID_LENGTH)?.try_into().ok()?;
    // Ports and addresses are in network byte order: source port, destination port, source, destination.
    let port = u16::from_be_bytes([id[2], id[3]]);
    let address: IpAddr = match family {
        AF_INET => Ipv4Addr::from(<[u8; 4]>::try_from(&id[20..24]).ok()?).into(),
        AF_INET6 => Ipv6Addr::from(<[u8; 16]>::try_from(&id[20..36]).ok()?).into(),
        _ => return None,
    };
    Some(TcpSocket {
        peer: SocketAddr::new(address.to_canonical(), port),
        cgroup: cgroup(message.get(MESSAGE..)?),
        family,
        id,
    })
}

/// Looks through `struct nlattr`s.
fn cgroup(mut attributes: &[u8]) -> Option<u64> {
    while let (Some(length), Some(kind)) = (u16_at(attributes, 0), u16_at(attributes, 2)) {
        let length = usize::from(length);
        let value = attributes.get(4..length)?;
        if kind == INET_DIAG_CGROUP_ID {
            return value.try_into().ok().map(u64::from_ne_bytes);
        }
        attributes = attributes.get(align(length)..)?;
    }
    None
}

/// Messages and attributes begin at multiples of four.
const fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    /// A dump's message about one socket, as Linux 6.18 writes it.
    fn message(family: u8, peer: &[u8], port: u16, attributes: &[u8]) -> Vec<u8> {
        let mut body = vec![family, 1, 0, 0];
        body.extend(50_000_u16.to_be_bytes());
        body.extend(port.to_be_bytes());
        body.extend([0; 16]);
        body.extend(peer);
        body.resize(MESSAGE, 7);
        body.extend(attributes);
        framed(SOCK_DIAG_BY_FAMILY, 0, &body)
    }

    fn framed(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(HEADER + body.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(body);
        bytes.resize(align(bytes.len()), 0);
        bytes
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(4 + value.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(align(bytes.len()), 0);
        bytes
    }

    const MAPPED: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 96, 0, 1];
    const SIXTH: [u8; 16] = [0xfd, 0, 0, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

    #[rstest]
    #[case::v4(AF_INET, &[10, 96, 0, 1], "10.96.0.1:443")]
    #[case::v6(AF_INET6, &SIXTH, "[fd00:96::1]:443")]
    #[case::mapped(AF_INET6, &MAPPED, "10.96.0.1:443")]
    fn sockets_are_read(#[case] family: u8, #[case] peer: &[u8], #[case] expected: &str) {
        let attributes = [
            attribute(8, &[0]),
            attribute(INET_DIAG_CGROUP_ID, &77_u64.to_ne_bytes()),
        ]
        .concat();
        let bytes = [message(family, peer, 443, &attributes), framed(NLMSG_DONE, 0, &[0; 4])].concat();
        let read = answers(&bytes);
        let [Answer::Socket(socket), Answer::Done] = &read[..] else {
            panic!("{read:?}");
        };
        assert_eq!((socket.peer, socket.cgroup), (expected.parse().unwrap(), Some(77)));
        // What is destroyed is the very socket that was described.
        let request = destroy(socket);
        assert_eq!(request[HEADER + 8..], bytes[HEADER + ID..HEADER + ID + ID_LENGTH]);
        assert_eq!(request[HEADER], family);
        assert_eq!(u32_at(&request, 0), u32::try_from(request.len()).ok());
    }

    #[test]
    fn a_kernel_that_names_no_cgroup_is_understood() {
        let read = answers(&message(AF_INET, &[10, 96, 0, 1], 443, &attribute(8, &[0])));
        assert!(
            matches!(&read[..], [Answer::Socket(TcpSocket { cgroup: None, .. })]),
            "{read:?}"
        );
    }

    #[rstest]
    #[case(framed(NLMSG_ERROR, 0, &(-95_i32).to_ne_bytes()), vec![Answer::Status(95)])]
    #[case(framed(NLMSG_ERROR, 0, &[0; 4]), vec![Answer::Status(0)])]
    #[case(framed(NLMSG_DONE, NLM_F_DUMP_INTR, &[0; 4]), vec![Answer::Interrupted, Answer::Done])]
    #[case(Vec::new(), vec![])]
    fn ends_are_read(#[case] bytes: Vec<u8>, #[case] expected: Vec<Answer>) {
        assert_eq!(answers(&bytes), expected);
    }

    proptest! {
        #[test]
        fn nothing_upsets_it(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _answers = answers(&bytes);
        }
    }
}
