//! The cluster as a source: its Sessions, this node's pods, and the API server's addresses, each watched; and what the
//! agent tells the cluster of them.
//!
//! Everything the agent asks for itself goes through [`client`], on the same pinned and verified way that requests of
//! sessions take.

pub mod client;
