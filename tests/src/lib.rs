//! What the demo and the end-to-end tests stand on: a node in a box and an API server to point it at.
//!
//! Nothing here is part of the agent; it is driven from outside, as an operator would.

pub mod apiserver;
pub mod node;
pub mod screens;
