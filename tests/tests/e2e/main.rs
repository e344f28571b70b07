//! End to end: real namespaces, cgroups and kernel programs, real clients, hostile ones too. One binary, so that it is
//! linked once.

mod addresses;
mod attack;
mod audited;
mod away;
mod caller;
mod churn;
mod clients;
mod cluster;
mod confined;
mod definition;
mod docs;
mod faults;
mod hold;
mod load;
mod mixed;
mod logging;
mod metrics;
mod node_in_a_box;
mod playing;
mod proofs;
mod recording;
mod refusals;
mod scale;
mod secrets;
mod sessions;
mod stored;
mod streams;
mod terminal;
mod tools;
mod tools_cluster;
mod traces;
mod trust;
mod upgrade;
mod webhook;
mod world;
