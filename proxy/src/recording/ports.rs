//! Port-forward as it passes: which ports are connected to, when, and how much goes either way. It is SPDY/3.1, a stream of
//! data and one of errors for each connection, by itself or in the messages of a WebSocket. What is carried isn't kept.

use std::{collections::HashMap, mem};

use super::{
    spdy::headers::{self, Inflater},
    stream::{Lost, Side},
    websocket,
};

/// The sub-protocol of a port-forward over WebSocket.
const TUNNEL: &[u8] = b"SPDY/3.1+portforward.k8s.io";

const CONTROL: u16 = 0x8000;
const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const HEADERS: u16 = 8;
const FIN: u8 = 1;
const STREAM_ID: u32 = 0x7fff_ffff;
const HEAD: usize = 8;
/// The longest frame that is looked into. Those of port-forward have a few words.
const LONGEST_BLOCK: usize = 16 * 1024;
/// Two for each connection that is open.
const MOST_STREAMS: usize = 4096;

/// How a port-forward is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// By SPDY/3.1 itself.
    Spdy,
    /// By the messages of a WebSocket, put together.
    WebSocket,
}

impl Carrier {
    /// Of a WebSocket, by its sub-protocol. `None`: by one that can't be read.
    #[must_use]
    pub fn of_subprotocol(name: &[u8]) -> Option<Self> {
        (name == TUNNEL).then_some(Self::WebSocket)
    }
}

/// Something that happened. Connections are numbered from one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The client asks for a connection.
    Opened {
        /// Its number.
        connection: u32,
        /// To which port of the pod.
        port: u16,
    },
    /// So many bytes came.
    Carried {
        /// On which connection.
        connection: u32,
        /// From which end.
        side: Side,
        /// How many.
        bytes: u64,
    },
    /// Nothing more comes, from either end.
    Closed {
        /// On which connection.
        connection: u32,
    },
}

/// Reads what happens off the bytes of both ends. What is kept is bounded whatever comes.
#[derive(Debug)]
pub struct Ports {
    tunnel: Option<Box<Tunnel>>,
    spdy: Spdy,
}

#[derive(Debug)]
struct Tunnel {
    client: websocket::Reader,
    server: websocket::Reader,
}

impl Ports {
    /// For a stream of which nothing has passed.
    #[must_use]
    pub fn new(carrier: Carrier) -> Self {
        let tunnel = || {
            Box::new(Tunnel {
                client: websocket::Reader::new(false),
                server: websocket::Reader::new(false),
            })
        };
        Self {
            tunnel: (carrier == Carrier::WebSocket).then(tunnel),
            spdy: Spdy::default(),
        }
    }

    /// Reads what comes next from one end. However the bytes are split, as much is seen.
    ///
    /// # Errors
    /// If the stream can't be followed. What was seen before stands, and nothing more can be.
    pub fn read(&mut self, side: Side, bytes: &[u8], see: &mut dyn FnMut(Event)) -> Result<(), Lost> {
        let Some(tunnel) = &mut self.tunnel else {
            return self.spdy.read(side, bytes, see);
        };
        let reader = match side {
            Side::Client => &mut tunnel.client,
            Side::Server => &mut tunnel.server,
        };
        let mut outcome = Ok(());
        reader.read_plain(bytes, &mut |part| {
            if outcome.is_ok() {
                outcome = self.spdy.read(side, part, see);
            }
        })?;
        outcome
    }
}

#[derive(Debug, Default)]
struct Spdy {
    client: Frames,
    server: Frames,
    streams: HashMap<u32, Stream>,
    headers: Inflater,
    /// The last stream that was opened. Ids only grow.
    last: u32,
    connections: u32,
}

#[derive(Debug)]
struct Stream {
    /// None for a stream of errors.
    connection: Option<u32>,
    client_done: bool,
    server_done: bool,
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
        id: u32,
        left: usize,
        fin: bool,
    },
    /// One that is looked into.
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

impl Spdy {
    fn read(&mut self, side: Side, mut bytes: &[u8], see: &mut dyn FnMut(Event)) -> Result<(), Lost> {
        while !bytes.is_empty() {
            let frames = self.frames(side);
            let body = match mem::take(&mut frames.body) {
                Body::None => {
                    let part = take(&mut bytes, HEAD - frames.have);
                    frames.head[frames.have..frames.have + part.len()].copy_from_slice(part);
                    frames.have += part.len();
                    if frames.have < HEAD {
                        return Ok(());
                    }
                    frames.have = 0;
                    let head = frames.head;
                    self.begin(side, head)?
                }
                Body::Data { id, left, fin } => {
                    let data = take(&mut bytes, left).len();
                    if let Some(connection) = self.streams.get(&id).and_then(|stream| stream.connection) {
                        let bytes = data as u64;
                        see(Event::Carried {
                            connection,
                            side,
                            bytes,
                        });
                    }
                    Body::Data {
                        id,
                        left: left - data,
                        fin,
                    }
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
                Body::Passed { left } => Body::Passed {
                    left: left - take(&mut bytes, left).len(),
                },
            };
            match body {
                Body::None | Body::Passed { left: 0 } => {}
                Body::Data { id, left: 0, fin } => {
                    if fin {
                        self.half_close(side, id, see);
                    }
                }
                Body::Block {
                    kind,
                    left: 0,
                    fin,
                    block,
                } => self.block(side, kind, fin, &block, see)?,
                unfinished => self.frames(side).body = unfinished,
            }
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
            return if self.streams.contains_key(&id) {
                Ok(Body::Data { id, left, fin })
            } else if id <= self.last && !id.is_multiple_of(2) {
                // Of a stream that was reset: it was on its way.
                Ok(Body::Passed { left })
            } else {
                Err(Lost::Spdy("data of a stream that was not opened"))
            };
        }
        if first & !CONTROL != VERSION {
            return Err(Lost::Spdy("a frame of another version"));
        }
        let kind = u16::from_be_bytes([c, d]);
        match (side, kind) {
            (Side::Server, SYN_STREAM) => Err(Lost::Spdy("a stream that the server opens")),
            (Side::Client, SYN_STREAM | SYN_REPLY | HEADERS | RST_STREAM) | (Side::Server, SYN_REPLY | RST_STREAM) => {
                if left > LONGEST_BLOCK {
                    return Err(Lost::Spdy("a header block longer than there can be"));
                }
                let block = Vec::new();
                Ok(Body::Block { kind, left, fin, block })
            }
            _ => Ok(Body::Passed { left }),
        }
    }

    fn block(
        &mut self,
        side: Side,
        kind: u16,
        fin: bool,
        frame: &[u8],
        see: &mut dyn FnMut(Event),
    ) -> Result<(), Lost> {
        const SHORT: Lost = Lost::Spdy("a header block cut short");
        let (id, rest) = frame.split_first_chunk::<4>().ok_or(SHORT)?;
        let id = u32::from_be_bytes(*id) & STREAM_ID;
        match (side, kind) {
            (_, RST_STREAM) => self.close(id, see),
            (Side::Client, SYN_STREAM) => {
                // Before the block: the stream that it goes with, a priority and a slot.
                let (_, rest) = rest.split_first_chunk::<6>().ok_or(SHORT)?;
                let block = self.headers.read(rest)?;
                self.open(id, &block, see)?;
            }
            // All blocks of a direction share the state of their compression.
            (Side::Client, _) => drop(self.headers.read(rest)?),
            (Side::Server, _) => {}
        }
        if fin {
            self.half_close(side, id, see);
        }
        Ok(())
    }

    fn open(&mut self, id: u32, block: &[u8], see: &mut dyn FnMut(Event)) -> Result<(), Lost> {
        if id <= self.last || id.is_multiple_of(2) || self.streams.len() >= MOST_STREAMS {
            return Err(Lost::Spdy("a stream opened twice, or too many"));
        }
        let connection = match headers::stream_type(block)? {
            b"error" => None,
            b"data" => {
                let port = std::str::from_utf8(headers::value(block, b"port")?).ok();
                let port = port
                    .and_then(|port| port.parse().ok())
                    .ok_or(Lost::Spdy("a stream to no port that there is"))?;
                self.connections += 1;
                let connection = self.connections;
                see(Event::Opened { connection, port });
                Some(connection)
            }
            _ => return Err(Lost::Spdy("a stream of no type that there is")),
        };
        self.last = id;
        let stream = Stream {
            connection,
            client_done: false,
            server_done: false,
        };
        self.streams.insert(id, stream);
        Ok(())
    }

    fn half_close(&mut self, side: Side, id: u32, see: &mut dyn FnMut(Event)) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        match side {
            Side::Client => stream.client_done = true,
            Side::Server => stream.server_done = true,
        }
        if stream.client_done && stream.server_done {
            self.close(id, see);
        }
    }

    fn close(&mut self, id: u32, see: &mut dyn FnMut(Event)) {
        if let Some(connection) = self.streams.remove(&id).and_then(|stream| stream.connection) {
            see(Event::Closed { connection });
        }
    }
}

fn take<'b>(bytes: &mut &'b [u8], most: usize) -> &'b [u8] {
    let (taken, rest) = bytes.split_at(most.min(bytes.len()));
    *bytes = rest;
    taken
}

#[cfg(test)]
mod tests;
