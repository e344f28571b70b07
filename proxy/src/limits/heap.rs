//! The allocator's spare pages. What is freed stays with glibc's allocator, wherever something else above it is in use:
//! after thousands of watches have closed, all of what they had. It gives back what it has spare when it is told to.
#![expect(unsafe_code, reason = "malloc_trim(3) is C's, and nobody wraps it")]

/// What has to have been open at once for its end to be worth it, over all pods.
const WORTH: usize = 256;

/// When what was open has become so much less that its memory is to go back. Plain data: looking is its owner's part.
#[derive(Debug)]
pub(super) struct Ebb {
    /// The most that has been open since it last went back.
    most: usize,
    /// It goes back once more: what was kept for the many, such as their connections upstream, is let go a moment after them.
    again: bool,
}

impl Ebb {
    /// The first time is the first look: starting takes memory that is never used again.
    pub(super) const fn new() -> Self {
        Self {
            most: usize::MAX,
            again: false,
        }
    }

    /// Whether so much has been open that its end would be worth it, or has just ended.
    pub(super) const fn holds_much(&self) -> bool {
        self.again || self.most >= WORTH
    }

    /// So much is open.
    pub(super) fn saw(&mut self, open: usize) {
        self.most = self.most.max(open);
    }

    /// Whether memory is to go back now that so much is open: when it is half of what it was, and at the next look.
    pub(super) fn is_due(&mut self, open: usize) -> bool {
        self.saw(open);
        let has_ebbed = self.most >= WORTH && open <= self.most / 2;
        if has_ebbed {
            self.most = open;
        }
        std::mem::replace(&mut self.again, has_ebbed) || has_ebbed
    }
}

/// Gives the system all whole pages that the allocator has spare. It takes milliseconds where there are many, and whoever
/// allocates meanwhile may wait.
pub(super) fn give_back() {
    // SAFETY: it takes no pointer, leaves every block that is in use as it is, and may be called by any thread at any time.
    #[cfg(target_env = "gnu")]
    let _any = unsafe { nix::libc::malloc_trim(0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_back_when_much_has_closed() {
        let mut ebb = Ebb::new();
        assert!(ebb.is_due(0), "what starting took");
        assert!(ebb.is_due(0), "and what was let go a moment later");
        assert!(
            !ebb.is_due(0) && !ebb.is_due(WORTH - 1) && !ebb.is_due(0),
            "little was open"
        );
        assert!(!ebb.is_due(10_000) && !ebb.is_due(5_001));
        assert!(ebb.is_due(5_000), "half has closed");
        assert!(ebb.is_due(5_000) && !ebb.is_due(5_000) && !ebb.is_due(2_501));
        assert!(ebb.is_due(0), "and the rest");
        assert!(ebb.holds_much() && ebb.is_due(0));
        assert!(!ebb.holds_much() && !ebb.is_due(0));
    }

    /// Without it what this frees stays, for the last block is in use.
    #[test]
    #[cfg(target_env = "gnu")]
    fn what_is_freed_goes_back() {
        const BLOCKS: usize = 20_000;
        let resident = || crate::limits::memory::resident().unwrap();
        let mut blocks: Vec<Vec<u8>> = (0..BLOCKS).map(|_| vec![1; 4000]).collect();
        let full = resident();
        let last = blocks.pop();
        drop(blocks);
        give_back();
        let left = resident();
        assert!(full - left > 60_000_000, "{full} bytes before, {left} after");
        drop(last);
    }
}
