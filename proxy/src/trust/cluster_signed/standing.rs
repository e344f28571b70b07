//! How the agent stands for a certificate, told as its readiness: ready while one is in service that hasn't expired,
//! whatever trouble there is with the next.

use std::{
    convert::Infallible,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::time;

use crate::{admin::Condition, clock::Clock};

/// How often it is looked whether the certificate has expired.
const LOOK: Duration = Duration::from_secs(10);

pub(super) struct Standing {
    condition: Condition,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    expiry: Option<Timestamp>,
    trouble: Option<String>,
}

impl Standing {
    pub(super) fn new(condition: Condition, clock: Clock) -> Self {
        Self {
            condition,
            clock,
            state: Mutex::default(),
        }
    }

    /// A certificate is in service.
    pub(super) fn good(&self, expiry: Timestamp) {
        self.change(|state| {
            *state = State {
                expiry: Some(expiry),
                trouble: None,
            }
        });
    }

    /// What stands in the way of the next; an operator may be told this.
    pub(super) fn trouble(&self, reason: String) {
        self.change(|state| state.trouble = Some(reason));
    }

    /// Says so when the certificate expires, for as long as this is awaited.
    pub(super) async fn keep(&self) -> Infallible {
        loop {
            time::sleep(LOOK).await;
            self.change(|_| ());
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        match (state.expiry, &state.trouble) {
            (Some(expiry), _) if self.clock.now() < expiry => self.condition.ready(),
            (_, Some(trouble)) => self.condition.not_ready(trouble.clone()),
            (Some(_), None) => self.condition.not_ready("the certificate has expired"),
            (None, None) => {}
        }
    }
}
