//! Where the API server is: a URL, from what the kubelet puts into every container's environment.
//! The environment itself is read at the edge; this module is handed a lookup.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use crate::pod::is_dns1123_subdomain;

/// The variable with the API server's host.
pub const SERVICE_HOST: &str = "KUBERNETES_SERVICE_HOST";
/// The variable with the API server's TLS port.
pub const SERVICE_PORT_HTTPS: &str = "KUBERNETES_SERVICE_PORT_HTTPS";

/// Why there is no API server URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvironmentError {
    /// The variable isn't set, or is empty.
    #[error(
        "the environment variable {0} is not set: run the agent in a pod, where the kubelet sets it, or set it to the API server's {what}",
        what = role(.0)
    )]
    Missing(&'static str),
    /// The host is neither an IP address nor a DNS name.
    #[error("{from} {value:?} is not an IP address or a DNS name: give the host alone, without scheme, port or zone")]
    Host {
        /// Which setting it came from.
        from: &'static str,
        /// What it said.
        value: String,
    },
    /// The port isn't a number from 1 to 65535.
    #[error("{from} {value:?} is not a port: give a number from 1 to 65535")]
    Port {
        /// Which setting it came from.
        from: &'static str,
        /// What it said.
        value: String,
    },
}

fn role(variable: &str) -> &'static str {
    if variable == SERVICE_HOST { "host" } else { "TLS port" }
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Host {
    Ip(IpAddr),
    Name(String),
}

/// The API server's URL: `https`, a host and a port, and nothing else.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ApiServerUrl {
    host: Host,
    port: u16,
}

impl ApiServerUrl {
    /// Reads [`SERVICE_HOST`] and [`SERVICE_PORT_HTTPS`] through `lookup`.
    ///
    /// # Errors
    /// Names the variable that is missing or wrong.
    pub fn from_environment(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, EnvironmentError> {
        let read = |variable: &'static str| {
            lookup(variable)
                .map(|value| value.trim().to_owned())
                .filter(|value| !value.is_empty())
                .ok_or(EnvironmentError::Missing(variable))
        };
        let host = parse_host(SERVICE_HOST, &read(SERVICE_HOST)?)?;
        let port = parse_port(SERVICE_PORT_HTTPS, &read(SERVICE_PORT_HTTPS)?)?;
        Ok(Self { host, port })
    }

    /// The host as written in a URL: an IPv6 address is in brackets.
    #[must_use]
    pub fn host(&self) -> String {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => format!("[{ip}]"),
            Host::Ip(IpAddr::V4(ip)) => ip.to_string(),
            Host::Name(name) => name.clone(),
        }
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The socket address, where the host is an IP address.
    #[must_use]
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Ip(ip) => Some(SocketAddr::new(ip, self.port)),
            Host::Name(_) => None,
        }
    }
}

impl fmt::Display for ApiServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}:{}", self.host(), self.port)
    }
}

impl fmt::Debug for ApiServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn parse_host(from: &'static str, text: &str) -> Result<Host, EnvironmentError> {
    let wrong = || EnvironmentError::Host {
        from,
        value: text.to_owned(),
    };
    if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return inner
            .parse::<Ipv6Addr>()
            .map(|ip| Host::Ip(ip.into()))
            .map_err(|_| wrong());
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(Host::Ip(ip));
    }
    let name = text.to_ascii_lowercase();
    // A name of digits and dots alone is a mistyped IPv4 address.
    if !is_dns1123_subdomain(&name) || name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return Err(wrong());
    }
    Ok(Host::Name(name))
}

fn parse_port(from: &'static str, text: &str) -> Result<u16, EnvironmentError> {
    let port = if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    };
    port.filter(|port| *port != 0).ok_or_else(|| EnvironmentError::Port {
        from,
        value: text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn environment(host: Option<&str>, port: Option<&str>) -> Result<ApiServerUrl, EnvironmentError> {
        ApiServerUrl::from_environment(|variable| match variable {
            SERVICE_HOST => host.map(str::to_owned),
            SERVICE_PORT_HTTPS => port.map(str::to_owned),
            other => panic!("{other} was asked for"),
        })
    }

    #[rstest]
    #[case("10.96.0.1", "443", "https://10.96.0.1:443")]
    #[case("10.96.0.1", "6443", "https://10.96.0.1:6443")]
    #[case("fd00::1", "443", "https://[fd00::1]:443")]
    #[case("[fd00::1]", "6443", "https://[fd00::1]:6443")]
    #[case("FD00:0::1", "443", "https://[fd00::1]:443")]
    #[case("API.example.com", "443", "https://api.example.com:443")]
    #[case(" 10.96.0.1\n", "443", "https://10.96.0.1:443")]
    fn reads_the_environment(#[case] host: &str, #[case] port: &str, #[case] url: &str) {
        assert_eq!(environment(Some(host), Some(port)).unwrap().to_string(), url);
    }

    #[rstest]
    #[case(None, Some("443"), SERVICE_HOST)]
    #[case(Some(""), Some("443"), SERVICE_HOST)]
    #[case(Some("10.96.0.1"), None, SERVICE_PORT_HTTPS)]
    #[case(Some("10.96.0.1"), Some(" "), SERVICE_PORT_HTTPS)]
    #[case(Some("https://10.96.0.1"), Some("443"), SERVICE_HOST)]
    #[case(Some("10.96.0.1:443"), Some("443"), SERVICE_HOST)]
    #[case(Some("10.96.0"), Some("443"), SERVICE_HOST)]
    #[case(Some("fe80::1%eth0"), Some("443"), SERVICE_HOST)]
    #[case(Some("[10.96.0.1]"), Some("443"), SERVICE_HOST)]
    #[case(Some("a b"), Some("443"), SERVICE_HOST)]
    #[case(Some("10.96.0.1"), Some("0"), SERVICE_PORT_HTTPS)]
    #[case(Some("10.96.0.1"), Some("65536"), SERVICE_PORT_HTTPS)]
    #[case(Some("10.96.0.1"), Some("+443"), SERVICE_PORT_HTTPS)]
    #[case(Some("10.96.0.1"), Some("tcp://10.96.0.1:443"), SERVICE_PORT_HTTPS)]
    fn names_the_wrong_variable(#[case] host: Option<&str>, #[case] port: Option<&str>, #[case] variable: &str) {
        let error = environment(host, port).unwrap_err().to_string();
        assert!(error.contains(variable), "{error}");
    }

    #[test]
    fn an_ip_address_is_one_to_intercept_and_a_name_is_not() {
        let address = |host| environment(Some(host), Some("6443")).unwrap().socket_addr();
        assert_eq!(address("fd00::1"), Some("[fd00::1]:6443".parse().unwrap()));
        assert_eq!(address("api.example.com"), None);
    }

    proptest! {
        #[test]
        fn an_address_is_displayed_as_a_url_has_it(host in any::<IpAddr>(), port in 1u16..) {
            let url = environment(Some(&host.to_string()), Some(&port.to_string())).unwrap();
            prop_assert_eq!(url.to_string(), format!("https://{}", SocketAddr::new(host, port)));
        }

        #[test]
        fn no_text_panics(host in ".{0,40}", port in ".{0,8}") {
            let _ = environment(Some(&host), Some(&port));
        }
    }
}
