//! Waiting for a condition with a limit so generous that only a fault reaches it.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep};

/// How long a busy machine is given before a condition counts as never coming true.
#[derive(Debug, Clone, Copy)]
pub struct Patience(pub Duration);

impl Default for Patience {
    fn default() -> Self {
        Self(Duration::from_secs(30))
    }
}

/// Asks `condition` until it answers `Some`, and returns that.
///
/// # Errors
/// It never did within 30 seconds; the error says `what` was awaited.
pub async fn eventually<T>(what: &str, condition: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    Patience::default().until(what, condition).await
}

impl Patience {
    /// Asks `condition` until it answers `Some`, and returns that.
    ///
    /// # Errors
    /// The condition's own error at once, or that it never came true.
    pub async fn until<T>(self, what: &str, mut condition: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
        let deadline = Instant::now() + self.0;
        loop {
            if let Some(value) = condition().await? {
                return Ok(value);
            }
            if Instant::now() > deadline {
                bail!("{what}: not within {:?}", self.0);
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}
