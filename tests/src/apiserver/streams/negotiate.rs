//! Which protocol an upgrade speaks, from its headers alone.

use http::{HeaderMap, header};

use super::super::status::Status;

/// A version of the channels of exec and attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channels {
    /// `v4.channel.k8s.io`: the error channel carries a `Status`.
    V4,
    /// `v5.channel.k8s.io`: and a client can close its stdin.
    V5,
}

impl Channels {
    fn name(self) -> &'static str {
        match self {
            Self::V4 => "v4.channel.k8s.io",
            Self::V5 => "v5.channel.k8s.io",
        }
    }
}

/// What both sides will speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Exec and attach over WebSocket.
    WebSocketChannels(Channels),
    /// Port-forward: SPDY in WebSocket messages.
    WebSocketTunnel,
    /// Exec and attach over SPDY.
    SpdyExec(Channels),
    /// Port-forward over SPDY.
    SpdyForward,
}

/// The subprotocol of port-forward over WebSocket.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// The protocol of port-forward over SPDY.
const FORWARD: &str = "portforward.k8s.io";

impl Protocol {
    /// The first of the client's protocols that is known.
    pub(crate) fn negotiate(headers: &HeaderMap, subresource: &str) -> Result<Self, Status> {
        let upgrades = |protocol: &str| {
            tokens(headers, header::UPGRADE.as_str()).any(|token| token.eq_ignore_ascii_case(protocol))
        };
        let forwards = subresource == "portforward";
        if upgrades("websocket") {
            tokens(headers, header::SEC_WEBSOCKET_PROTOCOL.as_str())
                .find_map(|token| match token {
                    TUNNEL if forwards => Some(Self::WebSocketTunnel),
                    _ if forwards => None,
                    token => channels(token, &[Channels::V5, Channels::V4]).map(Self::WebSocketChannels),
                })
                .ok_or_else(|| Status::bad_request("unable to upgrade: none of the subprotocols is known"))
        } else if upgrades("SPDY/3.1") {
            tokens(headers, "x-stream-protocol-version")
                .find_map(|token| match token {
                    FORWARD if forwards => Some(Self::SpdyForward),
                    _ if forwards => None,
                    // A SPDY stream is half-closed by itself: there's no v5 of it.
                    token => channels(token, &[Channels::V4]).map(Self::SpdyExec),
                })
                .ok_or_else(|| Status::bad_request("unable to upgrade: none of the protocol versions is known"))
        } else {
            Err(Status::bad_request("Upgrade request required"))
        }
    }

    /// The name that the answer repeats.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::WebSocketChannels(version) | Self::SpdyExec(version) => version.name(),
            Self::WebSocketTunnel => TUNNEL,
            Self::SpdyForward => FORWARD,
        }
    }

    /// True if it's framed as WebSocket.
    pub(crate) fn is_websocket(self) -> bool {
        matches!(self, Self::WebSocketChannels(_) | Self::WebSocketTunnel)
    }
}

fn channels(name: &str, known: &[Channels]) -> Option<Channels> {
    known.iter().copied().find(|version| version.name() == name)
}

fn tokens<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("exec", &[("upgrade", "websocket"), ("sec-websocket-protocol", "v5.channel.k8s.io, v4.channel.k8s.io")], Some(Protocol::WebSocketChannels(Channels::V5)))]
    #[case("exec", &[("upgrade", "WebSocket"), ("sec-websocket-protocol", "channel.k8s.io,v4.channel.k8s.io")], Some(Protocol::WebSocketChannels(Channels::V4)))]
    #[case("attach", &[("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", "v5.channel.k8s.io"), ("x-stream-protocol-version", "v4.channel.k8s.io")], Some(Protocol::SpdyExec(Channels::V4)))]
    #[case("portforward", &[("upgrade", "websocket"), ("sec-websocket-protocol", "SPDY/3.1+portforward.k8s.io")], Some(Protocol::WebSocketTunnel))]
    #[case("portforward", &[("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", "portforward.k8s.io")], Some(Protocol::SpdyForward))]
    #[case("portforward", &[("upgrade", "websocket"), ("sec-websocket-protocol", "v5.channel.k8s.io")], None)]
    #[case("exec", &[("upgrade", "websocket"), ("sec-websocket-protocol", "SPDY/3.1+portforward.k8s.io")], None)]
    #[case("exec", &[("upgrade", "h2c")], None)]
    #[case("exec", &[], None)]
    fn negotiation(
        #[case] subresource: &str,
        #[case] list: &[(&'static str, &'static str)],
        #[case] protocol: Option<Protocol>,
    ) {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(*name, HeaderValue::from_static(value));
        }
        assert_eq!(Protocol::negotiate(&headers, subresource).ok(), protocol);
    }
}
