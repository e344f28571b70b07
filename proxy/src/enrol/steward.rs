//! Orders to the enroller from the one that hands this agent's place to the next: `handover`.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::kernel::ResumeError;

/// For as long, at least, the listeners go on after their pods' entries name others: a connect that was turned to them
/// has long arrived by then.
pub(super) const GRACE: Duration = Duration::from_secs(1);
/// For as long at most: somebody sees to it that what they leave is refused.
pub(super) const LONGEST_GRACE: Duration = Duration::from_secs(20);

/// What the enroller is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Yield,
    Resume,
    Retire,
}

/// An order, and where to say what became of it.
pub(super) type Request = (Order, oneshot::Sender<Result<(), StewardError>>);

/// Why an order isn't carried out.
#[derive(Debug, thiserror::Error)]
pub enum StewardError {
    /// The agent is being taken down.
    #[error("enrolment has ended")]
    Ended,
    /// It has another one already.
    #[error("this agent has yielded already")]
    NotInCharge,
    /// It can't be in charge again.
    #[error(transparent)]
    Resume(#[from] ResumeError),
}

/// Hands enrolment over to the next agent of the node.
#[derive(Debug, Clone)]
pub struct Steward {
    pub(super) orders: mpsc::Sender<Request>,
    /// Cancelled once this agent has retired and its listeners are closed.
    pub(super) retired: CancellationToken,
}

impl Steward {
    /// Stops writing to the kernel and gives the pin directory up. All that is served goes on being served, through
    /// the same listeners, and the heart beats.
    ///
    /// # Errors
    /// Where the agent isn't in charge.
    pub async fn yield_up(&self) -> Result<(), StewardError> {
        self.order(Order::Yield).await
    }

    /// Undoes [`yield_up`](Self::yield_up), since the next agent came to nothing.
    ///
    /// # Errors
    /// Where another agent is in charge by now.
    pub async fn resume(&self) -> Result<(), StewardError> {
        self.order(Order::Resume).await
    }

    /// Leaves the place for good: once what was turned to the listeners has arrived they close, and the heart stops.
    /// [`retired`](Self::retired) tells when. Connections that were handed on aren't touched.
    ///
    /// # Errors
    /// Where the agent hasn't yielded.
    pub async fn retire(&self) -> Result<(), StewardError> {
        self.order(Order::Retire).await
    }

    /// Waits until the listeners are closed because another agent has taken over.
    pub async fn retired(&self) {
        self.retired.cancelled().await;
    }

    async fn order(&self, order: Order) -> Result<(), StewardError> {
        let (done, outcome) = oneshot::channel();
        self.orders.send((order, done)).await.map_err(|_| StewardError::Ended)?;
        outcome.await.map_err(|_| StewardError::Ended)?
    }
}
