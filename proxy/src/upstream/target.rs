//! Where an upstream is, and whom its certificate must name. Pinned by configuration, never by a request.

use std::{fmt, net::IpAddr};

use http::{Uri, uri::Authority};
use rustls::pki_types::ServerName;

/// A server, and the name that its certificate must carry.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    authority: Authority,
    port: u16,
    server_name: ServerName<'static>,
}

/// Why a target is refused.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum TargetError {
    /// Not a URL.
    #[error("url {0:?} is not one: use https://host:port, IPv6 in brackets")]
    Form(String),
    /// Not https.
    #[error("url {0:?} is not https: a token is sent over verified TLS only")]
    Scheme(String),
    /// It has a path, a query or a user in it. It isn't quoted, for the user may have a password.
    #[error("url has more than a host and a port: remove the path, the query and the user")]
    More,
    /// The name that the certificate must carry is neither a DNS name nor an IP address.
    #[error("serverName {0:?} is neither a DNS name nor an IP address: give the name that the certificate carries")]
    ServerName(String),
}

/// Whether a URL's host is this node itself, by its name: plaintext to it leaves the node nowhere.
pub(crate) fn is_here(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

impl Target {
    /// Parses `https://host[:port]`; the port is 443 where there is none. The certificate must name `server_name`
    /// or, where there is none, the URL's host.
    ///
    /// # Errors
    /// Anything but an https URL of a host and a port, or a name that isn't one.
    pub fn parse(url: &str, server_name: Option<&str>) -> Result<Self, TargetError> {
        let form = || TargetError::Form(url.to_owned());
        if url.contains('@') {
            return Err(TargetError::More);
        }
        let uri: Uri = url.parse().map_err(|_| form())?;
        let authority = uri.authority().ok_or_else(form)?;
        if uri.scheme_str() != Some("https") {
            return Err(TargetError::Scheme(url.to_owned()));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(TargetError::More);
        }
        let names_port = authority.as_str().len() > authority.host().len();
        let port = if names_port {
            authority.port_u16().filter(|port| *port != 0)
        } else {
            Some(443)
        };
        let name = server_name.unwrap_or_else(|| bare(authority.host()));
        let server_name =
            ServerName::try_from(name.to_owned()).map_err(|_| TargetError::ServerName(name.to_owned()))?;
        Ok(Self {
            authority: authority.clone(),
            port: port.ok_or_else(form)?,
            server_name,
        })
    }

    /// Host and port as a request names them (`Host`, `:authority`); IPv6 in brackets.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Where to dial: a host for the resolver, and a port.
    #[must_use]
    pub fn address(&self) -> (&str, u16) {
        (bare(self.authority.host()), self.port)
    }

    /// The host, where it is a DNS name.
    #[must_use]
    pub fn dns_name(&self) -> Option<&str> {
        let host = bare(self.authority.host());
        host.parse::<std::net::IpAddr>().is_err().then_some(host)
    }

    /// Whom the certificate must name.
    #[must_use]
    pub fn server_name(&self) -> &ServerName<'static> {
        &self.server_name
    }
}

/// A host without the brackets that IPv6 has in a URL.
fn bare(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} ({:?})", self.server_name)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("https://10.96.0.1:443", "10.96.0.1", 443)]
    #[case("https://10.96.0.1", "10.96.0.1", 443)]
    #[case("https://[fd00:96::1]:6443", "fd00:96::1", 6443)]
    #[case("https://api.example.org:6443/", "api.example.org", 6443)]
    fn parses(#[case] url: &str, #[case] host: &str, #[case] port: u16) {
        let target = Target::parse(url, None).unwrap();
        assert_eq!(target.address(), (host, port));
        assert_eq!(target.server_name().to_str(), host);
        assert_eq!(target.to_string(), url.trim_end_matches('/'));
    }

    #[rstest]
    #[case("http://10.96.0.1")]
    #[case("10.96.0.1:443")]
    #[case("https://")]
    #[case("https://user@host")]
    #[case("https://host/path")]
    #[case("https://host?query")]
    #[case("https://host:99999")]
    #[case("https://host:")]
    #[case("https://host:0")]
    #[case("https://fd00:96::1:443")]
    fn refuses(#[case] url: &str) {
        assert!(Target::parse(url, None).is_err(), "{url}");
    }

    #[test]
    fn the_name_to_expect_can_be_another() {
        let target = Target::parse("https://10.96.0.1", Some("kubernetes.default.svc")).unwrap();
        assert_eq!(target.server_name().to_str(), "kubernetes.default.svc");
        assert!(Target::parse("https://10.96.0.1", Some("not a name")).is_err());
    }
}
