//! An API server for the demo and the tests: small, but with Kubernetes' own rules for authentication, authorization
//! and impersonation, so that real clients work against it unmodified, and with a memory of every request.
//!
//! It runs in a task ([`ApiServer`]) or as the program `apiserver`, in another network namespace if need be; either
//! way [`Control`] reaches it over a unix socket.
//!
//! A request's way: [`connection`] accepts it, [`serve`] records, authenticates, impersonates and authorizes it, and
//! one of the handlers answers.

mod builder;
mod server;
mod tls;
mod reload;
mod connection;
mod serve;
mod record;
mod fault;
mod auth;
mod client_certificates;
mod service_accounts;
mod client_ca;
mod impersonation;
mod request;
mod rbac;
mod resources;
mod schema;
mod definitions;
mod discovery;
mod openapi;
mod rest;
mod list;
mod strategy;
mod translation;
mod certificates;
mod deletion;
mod store;
mod timeline;
mod state_file;
mod event;
mod selector;
mod patch;
mod managed;
mod field_set;
mod protobuf;
mod table;
mod sized;
mod gzip;
mod watch;
mod reviews;
mod logs;
mod streams;
mod probe;
mod status;
mod cause;
mod body;
mod sync;
mod control;
mod client;

pub(crate) use self::server::Shared;
pub use self::{
    auth::{ANONYMOUS, AUTHENTICATED, TokenTable, TokenTableError, UNAUTHENTICATED, UserInfo},
    builder::{Builder, StartError},
    client::{Control, ControlError},
    connection::ConnectionInfo,
    control::Overview,
    event::EventType,
    fault::{Fault, FaultAction},
    impersonation::impersonate,
    probe::FAREWELL,
    rbac::{Rule, Rules, RulesError},
    record::{Recorded, RecordedBody},
    reload::ReloadError,
    request::{Attributes, ResourceTarget, Target},
    server::{ApiServer, Settings},
    service_accounts::{ISSUER, TokenKey, TokenKeyError},
    status::Status,
    streams::{CARRIED_TO, Channel, Exec, LOG_FILE, SpdyExec, log},
    tls::{Authority, Identity, TlsError},
};
