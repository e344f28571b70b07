//! An exec as it is recorded. The bytes are how it is framed and split, and then what either end says, in turns.

use std::{io, time::Duration};

use jiff::Timestamp;

use crate::recording::{
    about::About,
    cast::{Cast, End, Ending, verify},
    stream::{Channel, Decoder, Framing, Lost, Seen, Side},
    transcript::Piece,
};

/// What was seen, bytes of a channel put together.
type Saw = (Vec<(Channel, Option<Vec<u8>>)>, Result<(), Lost>);

/// Whatever passes, and however it is split, the same is seen of it; nobody is seen to speak for the other; and what is
/// written down of it is a recording that is proven.
pub(super) fn holds(bytes: &[u8]) {
    let [framing, one, other, said @ ..] = bytes else {
        return;
    };
    let framing = match framing % 3 {
        0 => Framing::Spdy,
        1 => Framing::WebSocket { closes: true },
        _ => Framing::WebSocket { closes: false },
    };
    let sides = turns(said);
    let seen = read(framing, &sides, usize::from(*one) + 1);
    assert_eq!(
        seen,
        read(framing, &sides, usize::from(*other) + 1),
        "what is seen depends on how it is split"
    );
    let pieces = seen.0.into_iter().map(|(channel, bytes)| match bytes {
        Some(bytes) => Piece::Bytes(channel, bytes),
        None => Piece::Closed(channel),
    });
    let Ok((file, sum)) = recorded(&pieces.collect::<Vec<_>>()) else {
        panic!("memory doesn't take what is written");
    };
    assert!(std::str::from_utf8(&file).is_ok(), "a recording is text");
    match verify(&file[..]) {
        Ok(verified) => assert_eq!(
            (verified.sum, verified.ending),
            (sum, Ending::Whole("closed".to_owned()))
        ),
        Err(error) => panic!("{error}"),
    }
}

/// A byte for whose turn it is and how much is said, and then that.
fn turns(mut said: &[u8]) -> Vec<(Side, &[u8])> {
    let mut turns = Vec::new();
    while let Some((head, rest)) = said.split_first() {
        let side = if head & 0x80 == 0 { Side::Client } else { Side::Server };
        let (turn, rest) = rest.split_at(usize::from(head & 0x7f).min(rest.len()));
        turns.push((side, turn));
        said = rest;
    }
    turns
}

fn read(framing: Framing, turns: &[(Side, &[u8])], size: usize) -> Saw {
    let mut decoder = Decoder::new(framing);
    let mut saw: Vec<(Channel, Option<Vec<u8>>)> = Vec::new();
    for (side, turn) in turns {
        for part in turn.chunks(size) {
            let outcome = decoder.read(*side, part, &mut |seen| {
                let (channel, bytes) = match seen {
                    Seen::Bytes(channel, bytes) => (channel, Some(bytes)),
                    Seen::Closed(channel) => (channel, None),
                };
                let of_client = matches!(channel, Channel::Stdin | Channel::Resize);
                assert_eq!(
                    of_client,
                    *side == Side::Client,
                    "an end is seen to speak for the other"
                );
                match (saw.last_mut(), bytes) {
                    (_, Some([])) => {}
                    (Some((last, Some(all))), Some(bytes)) if *last == channel => all.extend_from_slice(bytes),
                    (_, bytes) => saw.push((channel, bytes.map(<[u8]>::to_vec))),
                }
            });
            if outcome.is_err() {
                return (saw, outcome);
            }
        }
    }
    (saw, Ok(()))
}

/// The recording, and its sum.
fn recorded(pieces: &[Piece]) -> io::Result<(Vec<u8>, String)> {
    let mut file = Vec::new();
    let mut cast = Cast::begin(&mut file, &About::default(), Timestamp::UNIX_EPOCH)?;
    for piece in pieces {
        cast.write([(Duration::ZERO, piece)])?;
    }
    let (sum, _) = cast.end(Duration::ZERO, End::Closed)?;
    Ok((file, sum))
}
