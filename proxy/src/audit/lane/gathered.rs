//! What one sink is to write, in batches: what waits behind a sink that was stuck isn't one write.

use std::{collections::VecDeque, mem};

use crate::audit::{event::Event, text::Scribe};

/// What is to be written next, and what after that.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    batches: VecDeque<Batch>,
    /// Room for the next batch's lines.
    spare: Vec<u8>,
    scribe: Scribe,
    is_closed: bool,
}

/// The events of one write.
#[derive(Debug, Default)]
struct Batch {
    lines: Vec<u8>,
    /// Those behind the lines: the first has bodies.
    behind: Vec<Event>,
    /// How many events that are.
    events: usize,
}

impl Gathered {
    /// Puts an event behind the others, in the last batch where that has fewer than `most`. True: there was nothing
    /// before it.
    pub(super) fn put(&mut self, event: &Event, most: usize) -> bool {
        let is_first = self.batches.is_empty();
        if self.batches.back().is_none_or(|last| last.events >= most) {
            self.batches.push_back(Batch {
                lines: mem::take(&mut self.spare),
                ..Batch::default()
            });
        }
        if let Some(last) = self.batches.back_mut() {
            if last.behind.is_empty() && event.bodies_size() == 0 {
                self.scribe.event(&mut last.lines, event);
            } else {
                last.behind.push(event.clone());
            }
            last.events += 1;
        }
        is_first
    }

    /// Puts the first batch's lines into `lines`, whose room is used for others that follow, and gives what is behind
    /// them, and how many events all of that is.
    pub(super) fn take(&mut self, lines: &mut Vec<u8>) -> (Vec<Event>, usize) {
        let Some(mut batch) = self.batches.pop_front() else {
            return (Vec::new(), 0);
        };
        mem::swap(&mut batch.lines, lines);
        self.spare = batch.lines;
        (batch.behind, batch.events)
    }

    /// Gives back the room that a burst took, where nothing waits: an agent at rest holds none. False: something waits.
    pub(super) fn rest(&mut self) -> bool {
        let nothing = self.batches.is_empty();
        if nothing {
            self.batches = VecDeque::new();
            self.spare = Vec::new();
        }
        nothing
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Nothing will come any more.
    pub(super) fn close(&mut self) {
        self.is_closed = true;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }
}
