//! WebSocket (RFC 6455) as it passes, and the channels of `channel.k8s.io` in its messages. Of a frame nothing is kept but
//! its head.

use super::stream::{Channel, Lost, Seen};

/// Two bytes, a length of eight, a mask of four.
const LONGEST_HEAD: usize = 14;
/// How much is unmasked at a time; a multiple of the mask.
const UNMASKED: usize = 1024;
/// The most that a control frame may carry.
const LONGEST_CONTROL: u64 = 125;
/// In place of a channel's number, where channels can be closed: the next byte is one that is.
const CLOSE: u8 = 255;

/// One direction of a WebSocket.
#[derive(Debug)]
pub struct Reader {
    closes: bool,
    head: [u8; LONGEST_HEAD],
    /// How much of the head has come.
    have: usize,
    /// The frame that is passing.
    frame: Option<Frame>,
    /// A message goes on in another frame.
    unfinished: bool,
    message: Message,
    /// A close has passed: what follows is nothing.
    over: bool,
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    kind: Kind,
    left: u64,
    /// Turned so that its first byte is for the next of the payload.
    mask: Option<[u8; 4]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Control,
    Close,
}

/// Where in a message its bytes are.
#[derive(Debug, Clone, Copy)]
enum Message {
    /// Before its first byte.
    Begins,
    /// It closes the channel that the next byte names.
    Closes,
    /// In the bytes of a channel; of none that there is.
    Of(Option<Channel>),
}

/// Where the bytes of messages go.
enum Sink<'s> {
    Channels(&'s mut dyn FnMut(Seen<'_>)),
    Plain(&'s mut dyn FnMut(&[u8])),
}

impl Reader {
    /// Of a connection of which nothing has passed after the handshake. `closes`: its channels can be closed.
    #[must_use]
    pub fn new(closes: bool) -> Self {
        Self {
            closes,
            head: [0; LONGEST_HEAD],
            have: 0,
            frame: None,
            unfinished: false,
            message: Message::Begins,
            over: false,
        }
    }

    /// Reads what comes next.
    ///
    /// # Errors
    /// If it isn't a frame that there can be here.
    pub fn read(&mut self, bytes: &[u8], see: &mut dyn FnMut(Seen<'_>)) -> Result<(), Lost> {
        self.read_to(bytes, &mut Sink::Channels(see))
    }

    /// Reads what comes next where messages have no channels: their bytes, one after another.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_plain(&mut self, bytes: &[u8], see: &mut dyn FnMut(&[u8])) -> Result<(), Lost> {
        self.read_to(bytes, &mut Sink::Plain(see))
    }

    fn read_to(&mut self, mut bytes: &[u8], sink: &mut Sink<'_>) -> Result<(), Lost> {
        while !bytes.is_empty() && !self.over {
            let Some(mut frame) = self.frame.take() else {
                bytes = self.head(bytes)?;
                continue;
            };
            let here = usize::try_from(frame.left).unwrap_or(usize::MAX).min(bytes.len());
            let (payload, rest) = bytes.split_at(here);
            bytes = rest;
            if frame.kind == Kind::Data {
                self.payload(frame.mask, payload, sink);
            }
            frame.left -= here as u64;
            if let Some(mask) = &mut frame.mask {
                mask.rotate_left(here % 4);
            }
            self.go_on(frame);
        }
        Ok(())
    }

    /// Takes what it can of a head, and gives back what follows.
    fn head<'b>(&mut self, bytes: &'b [u8]) -> Result<&'b [u8], Lost> {
        let missing = self.head_length() - self.have;
        let (taken, rest) = bytes.split_at(missing.min(bytes.len()));
        self.head[self.have..self.have + taken.len()].copy_from_slice(taken);
        self.have += taken.len();
        if self.have >= 2 && self.have == self.head_length() {
            self.have = 0;
            let frame = self.parse()?;
            self.go_on(frame);
        }
        Ok(rest)
    }

    /// As far as what has come of it says.
    fn head_length(&self) -> usize {
        if self.have < 2 {
            return 2;
        }
        let second = self.head[1];
        let length = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        2 + length + mask
    }

    fn parse(&mut self) -> Result<Frame, Lost> {
        let [first, second, rest @ ..] = self.head;
        if first & 0x70 != 0 {
            return Err(Lost::WebSocket("a frame has reserved bits"));
        }
        let (length, mask_at) = match second & 0x7f {
            126 => (u64::from(u16::from_be_bytes([rest[0], rest[1]])), 2),
            127 => {
                let mut length = [0; 8];
                length.copy_from_slice(&rest[..8]);
                (u64::from_be_bytes(length), 8)
            }
            short => (u64::from(short), 0),
        };
        if length >> 63 != 0 {
            return Err(Lost::WebSocket("a frame is longer than there can be"));
        }
        let mask =
            (second & 0x80 != 0).then(|| [rest[mask_at], rest[mask_at + 1], rest[mask_at + 2], rest[mask_at + 3]]);
        let last = first & 0x80 != 0;
        let kind = match first & 0x0f {
            0 if self.unfinished => Kind::Data,
            0 => return Err(Lost::WebSocket("a message goes on that has not begun")),
            1 | 2 if self.unfinished => return Err(Lost::WebSocket("a message begins within another")),
            1 | 2 => {
                self.message = Message::Begins;
                Kind::Data
            }
            8 => Kind::Close,
            9 | 10 => Kind::Control,
            _ => return Err(Lost::WebSocket("a frame is of no kind that there is")),
        };
        if kind == Kind::Data {
            self.unfinished = !last;
        } else if !last || length > LONGEST_CONTROL {
            return Err(Lost::WebSocket("a control frame is too long, or in parts"));
        }
        Ok(Frame {
            kind,
            left: length,
            mask,
        })
    }

    fn go_on(&mut self, frame: Frame) {
        if frame.left > 0 {
            self.frame = Some(frame);
        } else if frame.kind == Kind::Close {
            self.over = true;
        }
    }

    fn payload(&mut self, mask: Option<[u8; 4]>, payload: &[u8], sink: &mut Sink<'_>) {
        let Some(mask) = mask else {
            self.carried(payload, sink);
            return;
        };
        let mut plain = [0; UNMASKED];
        for part in payload.chunks(UNMASKED) {
            for (at, (to, from)) in plain.iter_mut().zip(part).enumerate() {
                *to = from ^ mask[at % 4];
            }
            self.carried(&plain[..part.len()], sink);
        }
    }

    /// Bytes of a message.
    fn carried(&mut self, bytes: &[u8], sink: &mut Sink<'_>) {
        let see = match sink {
            Sink::Channels(see) => see,
            Sink::Plain(see) => return see(bytes),
        };
        let Some((&first, rest)) = bytes.split_first() else {
            return;
        };
        match self.message {
            Message::Begins => {
                self.message = if first == CLOSE && self.closes {
                    Message::Closes
                } else {
                    Message::Of(channel(first))
                };
                self.carried(rest, sink);
            }
            Message::Closes => {
                self.message = Message::Of(None);
                if let Some(channel) = channel(first) {
                    see(Seen::Closed(channel));
                }
            }
            Message::Of(Some(channel)) => see(Seen::Bytes(channel, bytes)),
            Message::Of(None) => {}
        }
    }
}

fn channel(number: u8) -> Option<Channel> {
    match number {
        0 => Some(Channel::Stdin),
        1 => Some(Channel::Stdout),
        2 => Some(Channel::Stderr),
        3 => Some(Channel::Error),
        4 => Some(Channel::Resize),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// `None` for the close of a channel.
    type Said = (Channel, Option<Vec<u8>>);

    fn read(closes: bool, bytes: &[u8]) -> Result<Vec<Said>, Lost> {
        let mut seen = Vec::new();
        Reader::new(closes).read(bytes, &mut |one| {
            seen.push(match one {
                Seen::Bytes(channel, bytes) => (channel, Some(bytes.to_vec())),
                Seen::Closed(channel) => (channel, None),
            });
        })?;
        Ok(seen)
    }

    fn bytes(channel: Channel, bytes: &[u8]) -> (Channel, Option<Vec<u8>>) {
        (channel, Some(bytes.to_vec()))
    }

    #[test]
    fn messages_are_read() {
        let stdout = [0x82, 3, 1, b'h', b'i'];
        assert_eq!(read(true, &stdout).unwrap(), [bytes(Channel::Stdout, b"hi")]);
        // In parts, with a ping between them.
        let parts = [0x02, 2, 2, b'a', 0x89, 1, b'!', 0x80, 1, b'b'];
        assert_eq!(
            read(true, &parts).unwrap(),
            [bytes(Channel::Stderr, b"a"), bytes(Channel::Stderr, b"b")]
        );
        // Masked, as RFC 6455's own example ("Hello", section 5.7) with the channel before it.
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        let plain = b"\0Hello";
        let masked: Vec<u8> = plain
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask)
            .collect();
        let frame = [&[0x82, 0x86][..], &mask, &masked].concat();
        assert_eq!(read(true, &frame).unwrap(), [bytes(Channel::Stdin, b"Hello")]);
        // Both longer lengths, in a single frame each.
        let body = [&[1][..], &[b'x'; 300]].concat();
        let medium = [&[0x82, 126, 1, 45][..], &body].concat();
        let long = [&[0x82, 127, 0, 0, 0, 0, 0, 0, 1, 45][..], &body].concat();
        for frame in [medium, long] {
            assert_eq!(read(true, &frame).unwrap(), [bytes(Channel::Stdout, &[b'x'; 300])]);
        }
    }

    #[test]
    fn a_channel_is_closed_where_that_can_be() {
        let close = [0x82, 2, 255, 0];
        assert_eq!(read(true, &close).unwrap(), [(Channel::Stdin, None)]);
        assert!(read(false, &close).unwrap().is_empty());
    }

    #[rstest]
    #[case::empty(&[0x82, 0])]
    #[case::channel_alone(&[0x82, 1, 1])]
    #[case::unknown_channel(&[0x82, 2, 9, b'x'])]
    #[case::after_the_close(&[0x88, 0, 0x82, 3, 1, b'h', b'i'])]
    fn nothing_is_seen(#[case] frames: &[u8]) {
        assert!(read(true, frames).unwrap().is_empty());
    }

    #[rstest]
    #[case::compressed(&[0xc2, 1, 1])]
    #[case::kind(&[0x83, 0])]
    #[case::nothing_to_go_on(&[0x80, 1, 1])]
    #[case::within_another(&[0x02, 1, 1, 0x82, 1, 1])]
    #[case::long_ping(&[0x89, 126, 0, 126])]
    #[case::ping_in_parts(&[0x09, 0])]
    #[case::length(&[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0])]
    fn what_is_no_frame_is_lost(#[case] frames: &[u8]) {
        assert!(matches!(read(true, frames), Err(Lost::WebSocket(_))));
    }
}
