//! Who a request goes upstream as: three plain functions over a request's head, called in this order.
//!
//! [`guard()`] refuses what must not be forwarded at all, [`strip()`] takes off everything that the client said
//! about identity, and [`dress()`] puts on what the session grants. None of them does I/O, so that each is
//! tested as a table; an error in any of them refuses the request.

pub mod acts_as;
mod dress;
mod guard;
mod headers;
mod strip;

pub use acts_as::{ANONYMOUS, AUTHENTICATED, ActsAs, ActsAsError};
pub use dress::{DressError, dress, impersonate};
pub(crate) use guard::asks_to_impersonate;
pub use guard::guard;
pub(crate) use headers::{
    BEARER_SUBPROTOCOL_PREFIX, IMPERSONATE_EXTRA_PREFIX, IMPERSONATE_GROUP, IMPERSONATE_SESSION, IMPERSONATE_UID,
    IMPERSONATE_USER, list_members,
};
pub use strip::{strip, strip_response};
