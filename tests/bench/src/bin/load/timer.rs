//! A timer that is as exact as the kernel's: tokio's wakes a millisecond late, which is more than what is measured.

use std::{
    io::ErrorKind,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use anyhow::Result;
use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use tokio::net::unix::pipe;

/// A timer of one task's.
pub(crate) struct Timer {
    timer: TimerFd,
    /// The same one: a timer is read like a pipe, and tokio's own pipes are what it waits for without unsafe code.
    expirations: pipe::Receiver,
}

impl Timer {
    pub(crate) fn new() -> Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let same = timer.as_fd().try_clone_to_owned()?;
        Ok(Self {
            timer,
            expirations: pipe::Receiver::from_owned_fd_unchecked(same)?,
        })
    }

    /// Waits until then; not at all where it is past.
    pub(crate) async fn until(&mut self, due: Instant) -> Result<()> {
        let left = due.saturating_duration_since(Instant::now());
        if left == Duration::ZERO {
            return Ok(());
        }
        let once = Expiration::OneShot(TimeSpec::from_duration(left));
        self.timer.set(once, TimerSetTimeFlags::empty())?;
        loop {
            self.expirations.readable().await?;
            match self.expirations.try_read(&mut [0; 8]) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_never_early_and_what_is_past_is_not_waited_for() {
        let mut timer = Timer::new().unwrap();
        for _ in 0..10 {
            let due = Instant::now() + Duration::from_micros(300);
            timer.until(due).await.unwrap();
            assert!(Instant::now() >= due);
        }
        let past = Instant::now();
        timer.until(past).await.unwrap();
        assert!(past.elapsed() < Duration::from_secs(1));
    }
}
