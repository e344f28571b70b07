//! The cluster as a source: its Sessions, this node's pods, and the API server's addresses, each watched; and what the
//! agent tells the cluster of them.
//!
//! Everything the agent asks for itself goes through [`client`], on the same pinned and verified way that requests of
//! sessions take. [`watch`] follows a kind of object for whoever needs it; [`source`] puts what was seen together and
//! declares it ([`declare`]) to the store, pods that are [`departing`] included; [`status`], [`news`] and [`rights`]
//! tell. An API server that can't be reached changes nothing: what was seen last stays in force.

pub mod addresses;
pub mod client;
pub mod declare;
pub mod departing;
pub mod events;
pub mod layout;
pub mod news;
pub mod pods;
pub mod rights;
pub mod secrets;
pub mod sessions;
pub mod settle;
pub mod source;
pub mod status;
pub mod watch;
pub mod writer;

#[cfg(test)]
pub(crate) mod mock;

use std::fmt;

/// An object's name within its kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
