//! However it is framed and split, what is sent is what is seen; and whatever comes, nothing breaks.

use proptest::{prelude::*, sample::Index};

use super::*;
use crate::recording::spdy;

const WEBSOCKET: Framing = Framing::WebSocket { closes: true };

/// What was sent, or seen: `None` for the close of a channel.
type Said = (Channel, Option<Vec<u8>>);

/// What passes, in its order.
#[derive(Debug, Clone)]
struct Passing {
    side: Side,
    bytes: Vec<u8>,
}

fn client(bytes: Vec<u8>) -> Passing {
    let side = Side::Client;
    Passing { side, bytes }
}

/// Puts together what belongs together: where bytes of a channel are split means nothing.
fn say(said: &mut Vec<Said>, channel: Channel, bytes: Option<&[u8]>) {
    match (said.last_mut(), bytes) {
        (_, Some([])) => {}
        (Some((last, Some(all))), Some(bytes)) if *last == channel => all.extend_from_slice(bytes),
        (_, bytes) => said.push((channel, bytes.map(<[u8]>::to_vec))),
    }
}

/// Each part is split anew, at most `size` bytes at a time.
fn read(framing: Framing, passing: &[Passing], sizes: &[usize]) -> (Vec<Said>, Result<(), Lost>) {
    let mut decoder = Decoder::new(framing);
    let mut said = Vec::new();
    let mut sizes = sizes.iter().cycle();
    for Passing { side, bytes } in passing {
        let mut bytes = &bytes[..];
        while !bytes.is_empty() {
            let size = sizes.next().map_or(bytes.len(), |size| (*size).clamp(1, bytes.len()));
            let (part, rest) = bytes.split_at(size);
            bytes = rest;
            let read = decoder.read(*side, part, &mut |seen| match seen {
                Seen::Bytes(channel, bytes) => say(&mut said, channel, Some(bytes)),
                Seen::Closed(channel) => say(&mut said, channel, None),
            });
            if read.is_err() {
                return (said, read);
            }
        }
    }
    (said, Ok(()))
}

fn channels() -> impl Strategy<Value = Channel> {
    prop_oneof![
        Just(Channel::Stdin),
        Just(Channel::Stdout),
        Just(Channel::Stderr),
        Just(Channel::Error),
        Just(Channel::Resize),
    ]
}

fn contents() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        9 => proptest::collection::vec(any::<u8>(), 0..200),
        1 => proptest::collection::vec(any::<u8>(), 60_000..70_000),
    ]
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(prop_oneof![4 => 1..40_usize, 1 => 1000..20_000_usize], 1..12)
}

fn number(channel: Channel) -> u8 {
    match channel {
        Channel::Stdin => 0,
        Channel::Stdout => 1,
        Channel::Stderr => 2,
        Channel::Error => 3,
        Channel::Resize => 4,
    }
}

/// How a message is written.
#[derive(Debug, Clone)]
struct Manner {
    mask: Option<[u8; 4]>,
    /// Where it is cut into frames.
    cuts: Vec<Index>,
    /// Between its frames.
    ping: bool,
}

fn manners() -> impl Strategy<Value = Manner> {
    (
        any::<Option<[u8; 4]>>(),
        proptest::collection::vec(any::<Index>(), 0..3),
        any::<bool>(),
    )
        .prop_map(|(mask, cuts, ping)| Manner { mask, cuts, ping })
}

fn frame(first: u8, mask: Option<[u8; 4]>, payload: &[u8]) -> Vec<u8> {
    let masked = if mask.is_some() { 0x80 } else { 0 };
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..126 => frame.push(masked | u8::try_from(length).unwrap()),
        length @ 126..=0xffff => {
            frame.push(masked | 0x7e);
            frame.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        length => {
            frame.push(masked | 0x7f);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    let mask = mask.inspect(|mask| frame.extend(mask)).unwrap_or_default();
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

fn message(manner: &Manner, message: &[u8]) -> Vec<u8> {
    let mut cuts: Vec<usize> = manner.cuts.iter().map(|cut| cut.index(message.len() + 1)).collect();
    cuts.sort_unstable();
    let starts = std::iter::once(0).chain(cuts.iter().copied());
    let ends = cuts.iter().copied().chain([message.len()]);
    let mut frames = Vec::new();
    for (index, (start, end)) in starts.zip(ends).enumerate() {
        if index > 0 && manner.ping {
            frames.extend(frame(0x89, manner.mask, b"\x01ping"));
        }
        let first = if index == 0 { 2 } else { 0 } | if index == cuts.len() { 0x80 } else { 0 };
        frames.extend(frame(first, manner.mask, &message[start..end]));
    }
    frames
}

proptest! {
    #[test]
    fn what_is_sent_by_websocket_is_seen(
        messages in proptest::collection::vec((channels(), contents(), manners()), 0..12),
        sizes in sizes(),
    ) {
        let mut said = Vec::new();
        let mut passing = Vec::new();
        for (channel, content, manner) in &messages {
            say(&mut said, *channel, Some(content));
            let bytes = message(manner, &[&[number(*channel)][..], content].concat());
            passing.push(Passing { side: channel.speaker(), bytes });
        }
        passing.push(client(message(&Manner { mask: Some([1, 2, 3, 4]), cuts: Vec::new(), ping: false }, &[255, 0])));
        say(&mut said, Channel::Stdin, None);
        prop_assert_eq!(read(WEBSOCKET, &passing, &sizes), (said, Ok(())));
    }

    #[test]
    fn what_is_sent_by_spdy_is_seen(
        pieces in proptest::collection::vec((channels(), contents(), any::<bool>()), 0..12),
        sizes in sizes(),
    ) {
        let mut writer = spdy::tests::Writer::new();
        let named = ["stdin", "stdout", "stderr", "error", "resize"];
        let mut passing: Vec<Passing> = named
            .iter()
            .zip((1..).step_by(2))
            .map(|(name, id)| client(writer.open(id, false, &[("streamtype", *name)])))
            .collect();
        let mut said = Vec::new();
        for (channel, content, fin) in &pieces {
            let id = match channel {
                Channel::Stdin => 1,
                Channel::Stdout => 3,
                Channel::Stderr => 5,
                Channel::Error => 7,
                Channel::Resize => 9,
            };
            let bytes = spdy::tests::data(id, *fin, content);
            passing.push(Passing { side: channel.speaker(), bytes });
            say(&mut said, *channel, Some(content));
            if *fin {
                say(&mut said, *channel, None);
            }
        }
        prop_assert_eq!(read(Framing::Spdy, &passing, &sizes), (said, Ok(())));
    }

    /// Whatever comes, and however it is split: the same is seen, and lost at the same place.
    #[test]
    fn any_split_of_anything_is_seen_alike(
        passing in proptest::collection::vec(
            (any::<bool>(), proptest::collection::vec(prop_oneof![any::<u8>(), 0x80..0x83_u8, 0..6_u8], 0..80)),
            0..8,
        ),
        one in sizes(),
        other in sizes(),
    ) {
        let passing: Vec<Passing> = passing
            .into_iter()
            .map(|(server, bytes)| Passing { side: if server { Side::Server } else { Side::Client }, bytes })
            .collect();
        for framing in [WEBSOCKET, Framing::WebSocket { closes: false }, Framing::Spdy] {
            prop_assert_eq!(read(framing, &passing, &one), read(framing, &passing, &other));
        }
    }

    /// A connection as it should be, with bytes of it changed.
    #[test]
    fn a_changed_connection_breaks_nothing(
        changes in proptest::collection::vec((any::<Index>(), any::<u8>()), 0..6),
        one in sizes(),
        other in sizes(),
    ) {
        let mut writer = spdy::tests::Writer::new();
        let mut bytes = [
            writer.open(1, false, &[("streamtype", "stdin")]),
            writer.open(3, true, &[("streamtype", "resize"), ("port", "80")]),
            spdy::tests::data(1, false, b"some text"),
            spdy::tests::data(3, true, b"{}"),
        ]
        .concat();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let passing = [client(bytes)];
        prop_assert_eq!(read(Framing::Spdy, &passing, &one), read(Framing::Spdy, &passing, &other));
    }
}

#[test]
fn nobody_prints_by_typing() {
    let typed = frame(0x82, Some([1, 2, 3, 4]), b"\x01rm -rf /");
    assert_eq!(read(WEBSOCKET, &[client(typed)], &[]), (Vec::new(), Ok(())));
    let mut writer = spdy::tests::Writer::new();
    let open = writer.open(1, true, &[("streamtype", "stdout")]);
    let typed = client([open, spdy::tests::data(1, true, b"rm -rf /")].concat());
    assert_eq!(read(Framing::Spdy, &[typed], &[]), (Vec::new(), Ok(())));
}

#[test]
fn sub_protocols_are_told_apart() {
    for (name, framing) in [
        ("v5.channel.k8s.io", Some(WEBSOCKET)),
        ("v4.channel.k8s.io", Some(Framing::WebSocket { closes: false })),
        ("", Some(Framing::WebSocket { closes: false })),
        ("v4.base64.channel.k8s.io", None),
        ("SPDY/3.1+portforward.k8s.io", None),
    ] {
        assert_eq!(Framing::of_subprotocol(name.as_bytes()), framing, "{name}");
    }
}
