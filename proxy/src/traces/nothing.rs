//! No traces: of no size, and without a word of code in what calls it.
#![expect(
    clippy::unused_self,
    clippy::unused_async,
    reason = "as traces have it where they are built in"
)]

use std::time::Duration;

use http::{HeaderMap, Request};
use prometheus_client::registry::Registry;

use super::{TracesError, TracesOptions};
use crate::{audit::Event, forward::Origin, upstream::target::Target};

/// No traces.
#[derive(Debug, Clone, Default)]
pub struct Traces(());

/// No trace of a request.
#[derive(Debug)]
pub struct Trace;

const _: () = assert!(size_of::<Traces>() + size_of::<Trace>() == 0);

impl Traces {
    /// There are none.
    ///
    /// # Errors
    /// If any are asked for.
    pub async fn start(
        options: &TracesOptions,
        _node: &str,
        _lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, TracesError> {
        match options.first_given() {
            Some(option) => Err(TracesError::NotBuilt(option)),
            None => Ok(Self(())),
        }
    }

    /// Nothing is counted.
    pub fn register(&self, _registry: &mut Registry) {}

    /// Nothing waits.
    pub async fn drain(&self, _patience: Duration) {}

    #[inline]
    pub(crate) fn begin<B>(&self, _request: &Request<B>, _origin: &Origin) -> Trace {
        Trace
    }
}

impl Trace {
    #[inline]
    pub(crate) fn hand_on(&self, _headers: &mut HeaderMap, _upstream: &Target) {}

    #[inline]
    pub(crate) fn answered(&self) {}

    #[inline]
    pub(crate) fn end(&self, _event: &Event, _acts_as: Option<&str>) {}
}
