//! The way to the real API server: pinned addresses, verified TLS, and a pool of its own for every session.
//!
//! [`target`] says where and whom to expect there, [`roots`] who vouches for it; [`dial`] opens one verified connection; [`h2`],
//! [`h1`] and [`direct`] carry requests over one; [`pool`] chooses among many, of which there are only so many ([`socket`]). Nothing here knows of sessions or identities.

pub(crate) mod answer;
pub mod body;
pub mod dial;
pub mod direct;
mod h1;
mod h2;
pub mod pool;
pub mod roots;
mod socket;
pub mod target;

pub use body::UpstreamBody;
pub use dial::UpstreamError;
pub use pool::Upstream;
