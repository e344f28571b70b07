//! Traces by OpenTelemetry: of each request that is sampled a span of the agent's own, and beneath it one of what it asks
//! upstream, by whose id the API server's own span names its parent.
//!
//! A request's [account](crate::exchange) says when it begins, is handed on and ends, as it does to the audit log. Without the
//! feature `otlp` all of this has no size and does nothing. The context that clients send is forwarded as any other field is;
//! only what is sampled here is changed, so that an API server goes on as its client or itself decides.

#[cfg(not(feature = "otlp"))]
mod nothing;
#[cfg(feature = "otlp")]
mod otlp;

use std::path::PathBuf;

use crate::trust::TrustError;

#[cfg(not(feature = "otlp"))]
pub use self::nothing::{Trace, Traces};
#[cfg(feature = "otlp")]
pub use self::otlp::{Trace, Traces};

/// What is traced, and where it is sent.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TracesOptions {
    /// Send traces to an OpenTelemetry collector: the URL where it takes them by OTLP over HTTP, such as
    /// `https://otel.example.org:4318/v1/traces`. Takes an agent that was built with the feature otlp.
    #[arg(long, value_name = "URL")]
    pub traces_endpoint: Option<String>,
    /// The CA that signs the collector's certificate; read again for each connection.
    #[arg(long, value_name = "PATH")]
    pub traces_ca_file: Option<PathBuf>,
    /// Which part of the requests to trace, from 0 to 1, of those whose client doesn't say.
    #[arg(long, value_name = "RATIO", value_parser = ratio)]
    pub traces_sampling: Option<f64>,
    /// Send traces without TLS to a collector that isn't at a loopback address.
    #[arg(long)]
    pub traces_allow_plaintext: bool,
}

impl TracesOptions {
    /// The first option that is given.
    #[cfg(any(test, not(feature = "otlp")))]
    fn first_given(&self) -> Option<&'static str> {
        let options = [
            ("--traces-endpoint", self.traces_endpoint.is_some()),
            ("--traces-ca-file", self.traces_ca_file.is_some()),
            ("--traces-sampling", self.traces_sampling.is_some()),
            ("--traces-allow-plaintext", self.traces_allow_plaintext),
        ];
        options.into_iter().find_map(|(option, given)| given.then_some(option))
    }
}

/// Why there are no traces.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// The agent can't.
    #[error("{0}: this agent was built without traces: build it with --features otlp, or leave that out")]
    NotBuilt(&'static str),
    /// Not a URL. It isn't quoted, for there may be a password in it.
    #[error("{0} is not a URL of a collector: write it as https://host:4318/v1/traces, without a user or a query")]
    Endpoint(String),
    /// What was done in the pods would be read on the way.
    #[error(
        "{0} is http, and not at a loopback address: use https, or give --traces-allow-plaintext where the way there is safe"
    )]
    Plaintext(String),
    /// Nobody vouches for the collector.
    #[error("{0} is https, and no CA is named: give --traces-ca-file, or OTEL_EXPORTER_OTLP_CERTIFICATE")]
    NoCa(String),
    /// The CA can't be used.
    #[error("the collector's CA: {0}")]
    Trust(#[from] TrustError),
    /// A variable says what can't be done.
    #[error("the environment variable {variable} is {value:?}: {advice}")]
    Variable {
        /// Its name.
        variable: &'static str,
        /// What it says.
        value: String,
        /// What it may say.
        advice: &'static str,
    },
    /// The exporter refuses its terms.
    #[error("traces can't be sent: {0}: look at the variables OTEL_EXPORTER_OTLP_*")]
    Exporter(String),
}

/// A part of all, as an option or a variable says it.
fn ratio(text: &str) -> Result<f64, &'static str> {
    text.parse()
        .ok()
        .filter(|ratio| (0.0..=1.0).contains(ratio))
        .ok_or("not a part of all: give a number from 0 to 1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cant_be_done_is_not_promised() {
        assert_eq!(TracesOptions::default().first_given(), None);
        let sampled = TracesOptions {
            traces_sampling: Some(0.0),
            ..TracesOptions::default()
        };
        let error = sampled
            .first_given()
            .map(|option| TracesError::NotBuilt(option).to_string());
        let error = error.unwrap();
        assert!(
            error.contains("--traces-sampling") && error.contains("--features otlp"),
            "{error}"
        );
    }

    #[test]
    fn a_part_is_from_none_to_all() {
        for (text, expected) in [("0", Some(0.0)), ("0.25", Some(0.25)), ("1", Some(1.0))] {
            assert_eq!(ratio(text).ok(), expected);
        }
        for bad in ["", "-0.1", "1.1", "NaN", "inf", "1%"] {
            assert!(ratio(bad).is_err(), "{bad}");
        }
    }
}
