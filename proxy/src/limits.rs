//! How much a pod's clients may ask of the agent. The defaults are the command line's, and so the documentation's.
//!
//! [`load`] counts what each pod has, so that one at its limit leaves all others untouched; [`descriptors`] keeps some
//! of the process's descriptors for what isn't a pod's, and [`memory`] ends what fills it before the kernel ends the agent,
//! and has the allocator give back what is spare (`heap`).

pub mod descriptors;
mod heap;
pub mod load;
pub mod memory;

use std::time::Duration;

use clap::Args;

/// The limits, each an option of `understudy agent`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Limits")]
pub struct Limits {
    /// The largest head of a request, all header fields together, in bytes.
    #[arg(long, value_name = "BYTES", default_value = "65536", value_parser = clap::value_parser!(u32).range(8192..=1_048_576))]
    pub max_header_bytes: u32,
    /// How many header fields a request may have.
    #[arg(long, value_name = "COUNT", default_value = "256", value_parser = clap::value_parser!(u32).range(32..=4096))]
    pub max_headers: u32,
    /// Streams that one HTTP/2 connection of a pod may have open.
    #[arg(long, value_name = "COUNT", default_value = "4096", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_streams_per_connection: u32,
    /// Connections that a pod may have open at once.
    #[arg(long, value_name = "COUNT", default_value = "1024", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections_per_pod: u32,
    /// TLS handshakes that a pod may have under way at once; further ones wait for their turn.
    #[arg(long, value_name = "COUNT", default_value = "64", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_handshakes_per_pod: u32,
    /// Requests that a pod may have in flight at once, long-running ones not counted.
    #[arg(long, value_name = "COUNT", default_value = "1024", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_requests_per_pod: u32,
    /// Watches, upgrades and followed logs that a pod may have open at once.
    #[arg(long, value_name = "COUNT", default_value = "16384", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_long_running_per_pod: u32,
    /// Connections that a session may have to its API server at once.
    #[arg(long, value_name = "COUNT", default_value = "1000", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub max_upstream_connections: u32,
    /// How much memory the agent may use, in bytes. Nearly at it, it ends what the pod with most open has open. By
    /// default the container's limit, where the manifest tells it; none otherwise.
    #[arg(long, value_name = "BYTES", env = "MEMORY_LIMIT", value_parser = clap::value_parser!(u64).range(33_554_432..))]
    pub memory_limit: Option<u64>,
    /// How long a request may wait for a stream upstream, or for room in the audit log, before it is refused, in
    /// seconds.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub queue_timeout: Duration,
    /// Connections of one pod that may be on their way to its listener at a time.
    #[arg(long, value_name = "COUNT", default_value = "4096", value_parser = clap::value_parser!(u32).range(64..=65536))]
    pub max_pending_connections: u32,
    /// How long a client may take from the connection to the end of its TLS handshake, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub handshake_timeout: Duration,
    /// How long a client may take over a request's head, and an HTTP/1.1 connection may wait for its next request, in
    /// seconds.
    #[arg(long, value_name = "SECONDS", default_value = "90", value_parser = seconds)]
    pub header_timeout: Duration,
    /// How fast the body of a request has to come that says its length, in bytes a second: the client may be behind by
    /// --header-timeout. 0 is no limit. A body that doesn't say its length is a stream, and may be as slow as it likes.
    #[arg(long, value_name = "BYTES", default_value = "256")]
    pub min_body_rate: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_header_bytes: 64 * 1024,
            max_headers: 256,
            max_streams_per_connection: 4096,
            max_connections_per_pod: 1024,
            max_handshakes_per_pod: 64,
            max_requests_per_pod: 1024,
            max_long_running_per_pod: 16_384,
            max_upstream_connections: 1000,
            memory_limit: None,
            queue_timeout: Duration::from_secs(30),
            max_pending_connections: 4096,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(90),
            min_body_rate: 256,
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(0) => Err("it must be at least a second".to_owned()),
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(error) => Err(format!("{error}")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        limits: Limits,
    }

    #[test]
    fn the_command_lines_defaults_are_the_defaults() {
        assert_eq!(Only::parse_from(["agent"]).limits, Limits::default());
    }

    #[test]
    fn no_time_at_all_is_no_limit() {
        assert!(Only::try_parse_from(["agent", "--header-timeout", "0"]).is_err());
    }
}
