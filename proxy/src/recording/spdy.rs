//! SPDY/3.1 as it passes, as far as exec and attach use it: streams that the client opens, each of a type, and their data.
//! What is kept is the head of the frame that is passing, the client's header blocks one at a time, and which stream is
//! which.

mod dictionary;
pub(super) mod headers;

use std::mem;

use self::headers::Inflater;
use super::stream::{Channel, Lost, Seen, Side};

const CONTROL: u16 = 0x8000;
const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const HEADERS: u16 = 8;
const FIN: u8 = 1;
const STREAM_ID: u32 = 0x7fff_ffff;
const HEAD: usize = 8;

/// The longest frame with a header block. Those of exec have a few words.
const LONGEST_BLOCK: usize = 16 * 1024;
/// A stream for each of five channels is what there is; there may be a few of a kind.
const MOST_STREAMS: usize = 16;

/// Both directions of a connection.
#[derive(Debug, Default)]
pub struct Watcher {
    client: Frames,
    server: Frames,
    /// Which stream is which channel. One that was closed or reset stays: what was on its way then still comes.
    streams: Vec<(u32, Channel)>,
    headers: Inflater,
}

/// The frames of one direction.
#[derive(Debug, Default)]
struct Frames {
    head: [u8; HEAD],
    /// How much of the head has come.
    have: usize,
    body: Body,
}

/// The frame that is passing.
#[derive(Debug, Default)]
enum Body {
    /// None: a head comes next.
    #[default]
    None,
    Data {
        channel: Channel,
        left: usize,
        fin: bool,
    },
    /// One with a header block.
    Block {
        kind: u16,
        left: usize,
        fin: bool,
        block: Vec<u8>,
    },
    Passed {
        left: usize,
    },
}

impl Watcher {
    /// Reads what comes next from one end.
    ///
    /// # Errors
    /// If it isn't a frame that there can be here.
    pub fn read(&mut self, side: Side, mut bytes: &[u8], see: &mut dyn FnMut(Seen<'_>)) -> Result<(), Lost> {
        while !bytes.is_empty() {
            let frames = self.frames(side);
            let body = match mem::take(&mut frames.body) {
                Body::None => {
                    let (taken, rest) = bytes.split_at((HEAD - frames.have).min(bytes.len()));
                    frames.head[frames.have..frames.have + taken.len()].copy_from_slice(taken);
                    frames.have += taken.len();
                    bytes = rest;
                    if frames.have < HEAD {
                        return Ok(());
                    }
                    frames.have = 0;
                    let head = frames.head;
                    self.begin(side, head)?
                }
                Body::Data { channel, left, fin } => {
                    let data = take(&mut bytes, left);
                    see(Seen::Bytes(channel, data));
                    let left = left - data.len();
                    Body::Data { channel, left, fin }
                }
                Body::Block {
                    kind,
                    left,
                    fin,
                    mut block,
                } => {
                    let part = take(&mut bytes, left);
                    block.extend_from_slice(part);
                    let left = left - part.len();
                    Body::Block { kind, left, fin, block }
                }
                Body::Passed { left } => {
                    let left = left - take(&mut bytes, left).len();
                    Body::Passed { left }
                }
            };
            self.go_on(side, body, see)?;
        }
        Ok(())
    }

    fn frames(&mut self, side: Side) -> &mut Frames {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }

    /// What a head says that follows it.
    fn begin(&self, side: Side, head: [u8; HEAD]) -> Result<Body, Lost> {
        let [a, b, c, d, flags, length @ ..] = head;
        let fin = flags & FIN != 0;
        let left = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        let first = u16::from_be_bytes([a, b]);
        if first & CONTROL == 0 {
            let id = u32::from_be_bytes([a, b, c, d]);
            let channel = self
                .channel(id)
                .ok_or(Lost::Spdy("data of a stream that was not opened"))?;
            return Ok(Body::Data { channel, left, fin });
        }
        if first & !CONTROL != VERSION {
            return Err(Lost::Spdy("a frame of another version"));
        }
        let kind = u16::from_be_bytes([c, d]);
        match (side, kind) {
            (Side::Server, SYN_STREAM) => Err(Lost::Spdy("a stream that the server opens")),
            // Those that open nothing are read as well: all blocks of a direction share the state of their compression.
            (Side::Client, SYN_STREAM | SYN_REPLY | HEADERS) if left > LONGEST_BLOCK => {
                Err(Lost::Spdy("a header block longer than there can be"))
            }
            (Side::Client, SYN_STREAM | SYN_REPLY | HEADERS) => Ok(Body::Block {
                kind,
                left,
                fin,
                block: Vec::new(),
            }),
            _ => Ok(Body::Passed { left }),
        }
    }

    /// Sees to a frame that has passed whole, and keeps one that hasn't.
    fn go_on(&mut self, side: Side, body: Body, see: &mut dyn FnMut(Seen<'_>)) -> Result<(), Lost> {
        match body {
            Body::None | Body::Passed { left: 0 } => {}
            Body::Data { channel, left: 0, fin } => {
                if fin {
                    see(Seen::Closed(channel));
                }
            }
            Body::Block {
                kind,
                left: 0,
                fin,
                block,
            } => {
                if let Some(channel) = self.block(kind, &block)?.filter(|_| fin) {
                    see(Seen::Closed(channel));
                }
            }
            unfinished => self.frames(side).body = unfinished,
        }
        Ok(())
    }

    /// The channel that a frame of the client's with a header block opens.
    fn block(&mut self, kind: u16, frame: &[u8]) -> Result<Option<Channel>, Lost> {
        const SHORT: Lost = Lost::Spdy("a header block cut short");
        let (id, rest) = frame.split_first_chunk::<4>().ok_or(SHORT)?;
        if kind != SYN_STREAM {
            self.headers.read(rest)?;
            return Ok(None);
        }
        // Before the block: the stream that it goes with, a priority and a slot.
        let (_, rest) = rest.split_first_chunk::<6>().ok_or(SHORT)?;
        let block = self.headers.read(rest)?;
        let channel = match headers::stream_type(&block)? {
            b"stdin" => Channel::Stdin,
            b"stdout" => Channel::Stdout,
            b"stderr" => Channel::Stderr,
            b"error" => Channel::Error,
            b"resize" => Channel::Resize,
            _ => return Err(Lost::Spdy("a stream of no type that there is")),
        };
        let id = u32::from_be_bytes(*id) & STREAM_ID;
        if self.channel(id).is_some() || self.streams.len() >= MOST_STREAMS {
            return Err(Lost::Spdy("a stream opened twice, or too many"));
        }
        self.streams.push((id, channel));
        Ok(Some(channel))
    }

    fn channel(&self, id: u32) -> Option<Channel> {
        self.streams
            .iter()
            .find_map(|(known, channel)| (*known == id).then_some(*channel))
    }
}

fn take<'b>(bytes: &mut &'b [u8], most: usize) -> &'b [u8] {
    let (taken, rest) = bytes.split_at(most.min(bytes.len()));
    *bytes = rest;
    taken
}

#[cfg(test)]
pub(in crate::recording) mod tests {
    use flate2::{Compress, Compression, FlushCompress};
    use rstest::rstest;

    use super::*;

    /// Frames as a client and a server write them.
    pub(in crate::recording) struct Writer(Compress);

    impl Writer {
        pub(in crate::recording) fn new() -> Self {
            let mut compress = Compress::new(Compression::default(), true);
            compress.set_dictionary(&dictionary::dictionary()).unwrap();
            Self(compress)
        }

        pub(in crate::recording) fn block(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
            let mut plain = u32::try_from(headers.len()).unwrap().to_be_bytes().to_vec();
            for text in headers.iter().flat_map(|(name, value)| [name, value]) {
                plain.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
                plain.extend(text.as_bytes());
            }
            let mut block = Vec::with_capacity(2 * plain.len() + 128);
            self.0.compress_vec(&plain, &mut block, FlushCompress::Sync).unwrap();
            block
        }

        pub(in crate::recording) fn open(&mut self, id: u32, fin: bool, headers: &[(&str, &str)]) -> Vec<u8> {
            let body = [&id.to_be_bytes()[..], &[0; 6], &self.block(headers)].concat();
            control(SYN_STREAM, fin, &body)
        }
    }

    pub(in crate::recording) fn control(kind: u16, fin: bool, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        let head = [(CONTROL | VERSION).to_be_bytes(), kind.to_be_bytes()].concat();
        [&head[..], &[u8::from(fin)], &length[1..], body].concat()
    }

    pub(in crate::recording) fn data(id: u32, fin: bool, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&id.to_be_bytes()[..], &[u8::from(fin)], &length[1..], body].concat()
    }

    /// `None` for the close of a channel.
    type Said = (Channel, Option<Vec<u8>>);

    fn read(frames: &[(Side, Vec<u8>)]) -> Result<Vec<Said>, Lost> {
        let mut watcher = Watcher::default();
        let mut seen = Vec::new();
        for (side, bytes) in frames {
            watcher.read(*side, bytes, &mut |one| {
                seen.push(match one {
                    Seen::Bytes(channel, bytes) => (channel, Some(bytes.to_vec())),
                    Seen::Closed(channel) => (channel, None),
                });
            })?;
        }
        Ok(seen)
    }

    #[test]
    fn each_stream_is_its_channel() {
        let mut client = Writer::new();
        let frames = [
            (Side::Client, client.open(1, false, &[("streamtype", "error")])),
            (
                Side::Client,
                client.open(3, false, &[("x", "y"), ("Streamtype", "stdin")]),
            ),
            (Side::Client, client.open(5, true, &[("streamtype", "stdout")])),
            // A reply's block is of the server's own compression, which isn't looked into.
            (Side::Server, control(SYN_REPLY, false, &[0, 0, 0, 5, 1, 2, 3])),
            (Side::Client, data(3, false, b"ls\n")),
            (Side::Client, data(3, true, b"")),
            // A ping, and a window update.
            (Side::Server, control(6, false, &[0, 0, 0, 1])),
            (Side::Server, control(9, false, &[0; 8])),
            (Side::Server, data(5, false, b"a b\n")),
            (Side::Server, data(5, true, b"end")),
        ];
        let bytes = |text: &[u8]| Some(text.to_vec());
        assert_eq!(
            read(&frames).unwrap(),
            [
                (Channel::Stdout, None),
                (Channel::Stdin, bytes(b"ls\n")),
                (Channel::Stdin, None),
                (Channel::Stdout, bytes(b"a b\n")),
                (Channel::Stdout, bytes(b"end")),
                (Channel::Stdout, None),
            ]
        );
    }

    fn opened(headers: &[(&str, &str)]) -> Vec<u8> {
        Writer::new().open(1, false, headers)
    }

    fn many() -> Vec<u8> {
        let mut client = Writer::new();
        (0..=16)
            .flat_map(|index| client.open(2 * index + 1, false, &[("streamtype", "stdout")]))
            .collect()
    }

    fn twice() -> Vec<u8> {
        let mut client = Writer::new();
        let mut open = || client.open(1, false, &[("streamtype", "stdout")]);
        [open(), open()].concat()
    }

    #[rstest]
    #[case::version(Side::Client, vec![0x80, 2, 0, 1, 0, 0, 0, 0])]
    #[case::not_opened(Side::Client, data(1, false, b"x"))]
    #[case::not_opened_by_anybody(Side::Server, data(2, false, b"x"))]
    #[case::by_the_server(Side::Server, opened(&[("streamtype", "stdout")]))]
    #[case::no_type(Side::Client, opened(&[("port", "80")]))]
    #[case::another_type(Side::Client, opened(&[("streamtype", "data")]))]
    #[case::two_types(Side::Client, opened(&[("streamtype", "resize"), ("streamtype", "stdout")]))]
    #[case::two_values(Side::Client, opened(&[("streamtype", "resize\0stdout")]))]
    #[case::twice(Side::Client, twice())]
    #[case::many(Side::Client, many())]
    #[case::no_block(Side::Client, control(SYN_STREAM, false, &[0; 3]))]
    #[case::no_zlib(Side::Client, control(SYN_STREAM, false, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]))]
    #[case::long(Side::Client, vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff])]
    fn what_cannot_be_followed_is_lost(#[case] side: Side, #[case] bytes: Vec<u8>) {
        assert!(matches!(read(&[(side, bytes)]), Err(Lost::Spdy(_))));
    }

    #[test]
    fn a_block_that_never_ends_is_lost() {
        let long = "x".repeat(1 << 20);
        let frame = opened(&[("streamtype", "stdout"), ("x", &long)]);
        assert!(
            frame.len() < LONGEST_BLOCK,
            "{} bytes are a block of no size",
            frame.len()
        );
        assert_eq!(
            read(&[(Side::Client, frame)]),
            Err(Lost::Spdy("a header block that grows beyond any"))
        );
    }
}
