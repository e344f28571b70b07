//! Sessions: who a tagged pod acts as, until when, and how.
//!
//! A source ([`files`]) declares sessions; the store ([`store`]) is the one owner of which of them are in
//! force, and publishes snapshots that each request reads. A [`live::LiveSession`] is a session in force: its
//! credential, its upstream, and the token that is cancelled when it ends. [`usage`] says when one was last used, and
//! [`refuse`] which requests a session doesn't carry.

pub(crate) mod duration;
pub mod files;
mod judge;
pub mod live;
mod manifest;
mod parse;
pub mod refuse;
pub mod resource;
pub mod spec;
pub mod spread;
pub mod store;
pub mod usage;

use std::sync::Arc;

use jiff::Timestamp;

use crate::pod::{SessionId, WantedPod};

pub(crate) use manifest::without_values;

/// A session as a source declares it: named, with its pods, and parsed or refused.
#[derive(Debug, Clone)]
pub struct Declared {
    /// Its name.
    pub id: SessionId,
    /// The pods that carry it. They stay intercepted when the rest of the declaration is refused.
    pub pods: Vec<WantedPod>,
    /// What it says, or why that is refused.
    pub spec: Result<spec::SessionSpec, spec::SpecError>,
    /// What tells it from another of the same name that was made after it was deleted: a resource's UID.
    pub incarnation: Option<Arc<str>>,
    /// When it was last used, as far as its source knows: an agent that starts counts idle time from there.
    pub last_used: Option<Timestamp>,
}
