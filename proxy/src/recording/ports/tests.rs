//! What a port-forward did is seen, however its bytes are split, and what can't be followed is lost.

use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::recording::spdy::tests::{Writer, control, data};

fn open(writer: &mut Writer, id: u32, kind: &str, port: &str) -> (Side, Vec<u8>) {
    let headers = [("streamtype", kind), ("port", port), ("requestid", "0")];
    (Side::Client, writer.open(id, false, &headers))
}

/// What comes of it, at most `size` bytes at a time, and the counts of a connection and an end put together.
fn read(carrier: Carrier, frames: &[(Side, Vec<u8>)], size: usize) -> Result<Vec<Event>, Lost> {
    let mut ports = Ports::new(carrier);
    let mut seen: Vec<Event> = Vec::new();
    for (from, bytes) in frames {
        for part in bytes.chunks(size) {
            ports.read(*from, part, &mut |event| match (seen.last_mut(), event) {
                (_, Event::Carried { bytes: 0, .. }) => {}
                (
                    Some(Event::Carried {
                        connection,
                        side,
                        bytes: sum,
                    }),
                    Event::Carried {
                        connection: of,
                        side: by,
                        bytes,
                    },
                ) if *connection == of && *side == by => *sum += bytes,
                _ => seen.push(event),
            })?;
        }
    }
    Ok(seen)
}

fn carried(connection: u32, side: Side, bytes: u64) -> Event {
    Event::Carried {
        connection,
        side,
        bytes,
    }
}

fn forwarded() -> Vec<(Side, Vec<u8>)> {
    let mut writer = Writer::new();
    let reset = |id: u32| control(RST_STREAM, false, &[&id.to_be_bytes()[..], &[0, 0, 0, 5]].concat());
    vec![
        open(&mut writer, 1, "error", "8080"),
        (Side::Client, data(1, true, b"")),
        open(&mut writer, 3, "data", "8080"),
        (Side::Server, control(SYN_REPLY, false, &[0, 0, 0, 3, 1, 2, 3])),
        (Side::Client, data(3, false, b"GET /")),
        open(&mut writer, 5, "error", "5432"),
        open(&mut writer, 7, "data", "5432"),
        (Side::Server, data(3, false, &[b'x'; 300])),
        (Side::Client, data(3, true, b"!")),
        (Side::Server, data(3, true, b"")),
        // Errors aren't counted.
        (Side::Server, data(1, true, b"no such thing")),
        (Side::Client, data(7, false, b"ab")),
        (Side::Client, reset(7)),
        // It was on its way.
        (Side::Server, data(7, true, b"late")),
        open(&mut writer, 9, "data", "1"),
    ]
}

fn events() -> Vec<Event> {
    vec![
        Event::Opened {
            connection: 1,
            port: 8080,
        },
        carried(1, Side::Client, 5),
        Event::Opened {
            connection: 2,
            port: 5432,
        },
        carried(1, Side::Server, 300),
        carried(1, Side::Client, 1),
        Event::Closed { connection: 1 },
        carried(2, Side::Client, 2),
        Event::Closed { connection: 2 },
        Event::Opened { connection: 3, port: 1 },
    ]
}

/// Its bytes in messages that have nothing to do with its frames.
fn tunnelled(frames: Vec<(Side, Vec<u8>)>, longest: usize) -> Vec<(Side, Vec<u8>)> {
    let messages = frames.into_iter().flat_map(|(side, bytes)| {
        let parts: Vec<Vec<u8>> = bytes.chunks(longest.clamp(1, 125)).map(<[u8]>::to_vec).collect();
        parts.into_iter().map(move |part| (side, part))
    });
    let message = |(side, part): (Side, Vec<u8>)| {
        let length = u8::try_from(part.len()).unwrap();
        let bytes = match side {
            Side::Server => [&[0x82, length][..], &part].concat(),
            Side::Client => {
                let mask = [9, 8, 7, 6];
                let masked = part.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
                [0x82, 0x80 | length].into_iter().chain(mask).chain(masked).collect()
            }
        };
        (side, bytes)
    };
    messages.map(message).collect()
}

proptest! {
    #[test]
    fn what_a_forward_did_is_seen(size in 1..400_usize, longest in 1..126_usize) {
        prop_assert_eq!(read(Carrier::Spdy, &forwarded(), size), Ok(events()));
        prop_assert_eq!(read(Carrier::WebSocket, &tunnelled(forwarded(), longest), size), Ok(events()));
    }

    #[test]
    fn whatever_comes_breaks_nothing(bytes in proptest::collection::vec(any::<(bool, Vec<u8>)>(), 0..20)) {
        let frames: Vec<_> = bytes
            .into_iter()
            .map(|(server, bytes)| (if server { Side::Server } else { Side::Client }, bytes))
            .collect();
        for carrier in [Carrier::Spdy, Carrier::WebSocket] {
            prop_assert_eq!(read(carrier, &frames, 1).is_ok(), read(carrier, &frames, 1000).is_ok());
        }
    }
}

fn one(kind: &str, port: &str) -> (Side, Vec<u8>) {
    open(&mut Writer::new(), 1, kind, port)
}

fn many() -> Vec<(Side, Vec<u8>)> {
    let mut writer = Writer::new();
    (0..=4096)
        .map(|index| open(&mut writer, 2 * index + 1, "error", "1"))
        .collect()
}

fn twice() -> Vec<(Side, Vec<u8>)> {
    let mut writer = Writer::new();
    (0..2).map(|_| open(&mut writer, 1, "data", "1")).collect()
}

#[rstest]
#[case::type_of_exec(vec![one("stdin", "80")])]
#[case::no_port(vec![one("data", "http")])]
#[case::beyond_ports(vec![one("data", "65536")])]
#[case::not_opened(vec![(Side::Server, data(1, false, b"x"))])]
#[case::even(vec![one("data", "80"), (Side::Client, data(2, false, b"x"))])]
#[case::by_the_server(vec![(Side::Server, one("data", "80").1)])]
#[case::twice(twice())]
#[case::many(many())]
#[case::version(vec![(Side::Client, vec![0x80, 2, 0, 1, 0, 0, 0, 0])])]
#[case::long(vec![(Side::Client, vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff])])]
fn what_cannot_be_followed_is_lost(#[case] frames: Vec<(Side, Vec<u8>)>) {
    assert!(matches!(read(Carrier::Spdy, &frames, 100), Err(Lost::Spdy(_))));
}

#[test]
fn sub_protocols_are_told_apart() {
    assert_eq!(
        Carrier::of_subprotocol(b"SPDY/3.1+portforward.k8s.io"),
        Some(Carrier::WebSocket)
    );
    assert_eq!(Carrier::of_subprotocol(b"v4.channel.k8s.io"), None);
    assert_eq!(Carrier::of_subprotocol(b""), None);
}
