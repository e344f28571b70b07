//! Sessions: who a tagged pod acts as, until when, and how.
//!
//! A source ([`files`]) declares sessions; the store ([`store`]) is the one owner of which of them are in
//! force, and publishes snapshots that each request reads. A [`live::LiveSession`] is a session in force: its
//! credential, its upstream, and the token that is cancelled when it ends.

pub mod files;
pub mod live;
mod manifest;
pub mod spec;
pub mod store;

use crate::pod::{SessionId, WantedPod};

/// A session as a source declares it: named, with its pods, and parsed or refused.
#[derive(Debug, Clone)]
pub struct Declared {
    /// Its name.
    pub id: SessionId,
    /// The pods that carry it. They stay intercepted when the rest of the declaration is refused.
    pub pods: Vec<WantedPod>,
    /// What it says, or why that is refused.
    pub spec: Result<spec::SessionSpec, spec::SpecError>,
}
