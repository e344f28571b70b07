//! What an exec or attach consists of, whichever protocol carries it, and the reading of it off the bytes of both ends.
//! No I/O; what is kept is bounded whatever comes.

use super::{spdy, websocket};

/// Which end of a stream sent something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The pod's client.
    Client,
    /// The API server.
    Server,
}

/// The channels of an exec or attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    /// What is typed.
    Stdin,
    /// What the program prints.
    Stdout,
    /// What it complains of. With a terminal, all is on the other.
    Stderr,
    /// How it ended: a `Status`.
    Error,
    /// The terminal's size, as JSON.
    Resize,
}

impl Channel {
    /// Which end speaks on it. What the other says there is nothing to either.
    #[must_use]
    pub fn speaker(self) -> Side {
        match self {
            Self::Stdin | Self::Resize => Side::Client,
            Self::Stdout | Self::Stderr | Self::Error => Side::Server,
        }
    }
}

/// Something that passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen<'b> {
    /// Bytes of a channel. Where they are split means nothing.
    Bytes(Channel, &'b [u8]),
    /// Nothing more comes on it.
    Closed(Channel),
}

/// How a stream is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// WebSocket, a channel's number before each message.
    WebSocket {
        /// Whether a channel can be closed, as in `v5.channel.k8s.io`.
        closes: bool,
    },
    /// SPDY/3.1, a stream for each channel.
    Spdy,
}

impl Framing {
    /// Of a WebSocket, by the sub-protocol that was agreed on; empty where there was none. `None` where its messages are
    /// of another form, such as base64.
    #[must_use]
    pub fn of_subprotocol(name: &[u8]) -> Option<Self> {
        match name {
            b"v5.channel.k8s.io" => Some(Self::WebSocket { closes: true }),
            b"v4.channel.k8s.io" | b"channel.k8s.io" | b"" => Some(Self::WebSocket { closes: false }),
            _ => None,
        }
    }
}

/// Why a stream can't be followed any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// It isn't WebSocket as RFC 6455 has it, or with an extension that wasn't asked for.
    #[error("the WebSocket can't be followed: {0}")]
    WebSocket(&'static str),
    /// It isn't SPDY/3.1, or not as exec and attach use it.
    #[error("the SPDY connection can't be followed: {0}")]
    Spdy(&'static str),
}

/// Reads what passes off the bytes of both ends.
#[derive(Debug)]
pub struct Decoder(Kind);

#[derive(Debug)]
enum Kind {
    WebSocket {
        client: websocket::Reader,
        server: websocket::Reader,
    },
    // Boxed for its size.
    Spdy(Box<spdy::Watcher>),
}

impl Decoder {
    /// For a stream of which nothing has passed.
    #[must_use]
    pub fn new(framing: Framing) -> Self {
        Self(match framing {
            Framing::WebSocket { closes } => Kind::WebSocket {
                client: websocket::Reader::new(closes),
                server: websocket::Reader::new(closes),
            },
            Framing::Spdy => Kind::Spdy(Box::default()),
        })
    }

    /// Reads what comes next from one end. However the bytes are split, the same is seen. What an end says on a channel
    /// that is the other's isn't: nobody prints by typing.
    ///
    /// # Errors
    /// If the stream can't be followed. What was seen before stands, and nothing more can be.
    pub fn read(&mut self, side: Side, bytes: &[u8], see: &mut dyn FnMut(Seen<'_>)) -> Result<(), Lost> {
        let mut its_own = |seen: Seen<'_>| {
            let (Seen::Bytes(channel, _) | Seen::Closed(channel)) = seen;
            if channel.speaker() == side {
                see(seen);
            }
        };
        match &mut self.0 {
            Kind::WebSocket { client, server } => match side {
                Side::Client => client.read(bytes, &mut its_own),
                Side::Server => server.read(bytes, &mut its_own),
            },
            Kind::Spdy(watcher) => watcher.read(side, bytes, &mut its_own),
        }
    }
}

#[cfg(test)]
mod tests;
