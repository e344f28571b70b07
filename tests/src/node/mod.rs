//! A Kubernetes node in a box: network namespaces, cgroups, mounts, certificates and accounts, with pods, an API
//! server and the agent running inside. No packet can leave it, since no link joins it to the machine outside.
//!
//! Everything made is held by a guard that unmakes it, also when a test panics. What a killed run leaves behind carries
//! that run's process id in its name, and the next box sweeps it away.

mod account;
mod agent;
mod api_server;
mod audit;
pub mod binaries;
mod cgroup;
mod command;
mod host;
mod layout;
mod light;
mod memory;
mod metrics;
mod mounts;
mod name;
mod netns;
pub mod network;
mod pki;
mod pod;
mod pod_spec;
mod session;
mod sweep;
mod tmux;
mod tools;
mod wait;

pub use account::{Accounts, ServiceAccount};
pub use agent::{AGENT_NAMESPACE, Agent, AgentOptions, Sessions, TRUST_SECRET, Trust};
pub use api_server::{ApiServer, Mark, SeenRequest, ServerOptions, TestServerOptions};
pub use audit::{AuditEvent, AuditUser};
pub use command::{Command, Output, Running};
pub use host::Node;
pub use layout::{Layout, Qos};
pub use light::{LightPod, LightPods};
pub use memory::MemoryLimit;
pub use metrics::Metrics;
pub use mounts::SmallDisk;
pub use network::Family;
pub use pki::{CertificateAuthority, Client, Identity};
pub use pod::{Pod, PreparedPod};
pub use pod_spec::{NODE_NAME, PodSpec, SESSION_LABEL};
pub use session::{Session, SessionsDir};
pub use tmux::Terminal;
pub use wait::{Patience, eventually};
