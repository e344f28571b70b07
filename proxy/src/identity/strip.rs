//! What comes off a request, and off an answer, before anything of ours goes on.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::headers::{BEARER_SUBPROTOCOL_PREFIX, HOP_BY_HOP, carries_identity, list_members, remove_where};

/// Takes everything off a request's head that carries identity or belongs to the client's connection alone.
///
/// What `Connection` names comes off first, so that afterwards none of our own headers can be named away
/// (invariant 2). `Host` comes off too: the upstream's name is pinned.
pub fn strip(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    remove_where(headers, carries_identity);
    strip_bearer_subprotocol(headers);
    headers.remove(header::HOST);
    headers.remove(header::EXPECT);
}

/// Takes the fields off an answer that belong to the upstream connection alone.
pub fn strip_response(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    headers.remove(header::PROXY_AUTHENTICATE);
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = list_members(headers, &header::CONNECTION)
        .filter_map(|name| HeaderName::from_bytes(name).ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Leaves the sub-protocols standing that carry no token, in their order.
fn strip_bearer_subprotocol(headers: &mut HeaderMap) {
    let prefix = BEARER_SUBPROTOCOL_PREFIX.as_bytes();
    let bears = |member: &[u8]| member.len() >= prefix.len() && member[..prefix.len()].eq_ignore_ascii_case(prefix);
    if !list_members(headers, &header::SEC_WEBSOCKET_PROTOCOL).any(bears) {
        return;
    }
    let kept: Vec<&[u8]> = list_members(headers, &header::SEC_WEBSOCKET_PROTOCOL)
        .filter(|member| !bears(member))
        .collect();
    let kept = HeaderValue::from_bytes(&kept.join(b", ".as_slice()))
        .ok()
        .filter(|value| !value.is_empty());
    headers.remove(header::SEC_WEBSOCKET_PROTOCOL);
    if let Some(kept) = kept {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, kept);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        map
    }

    #[rstest]
    #[case::nothing_to_do(&[("accept", "*/*")], &[("accept", "*/*")])]
    #[case::credentials(&[("authorization", "Bearer a"), ("authorization", "Basic b"), ("cookie", "c")], &[])]
    #[case::front_proxy(&[("x-remote-user", "root"), ("X-Remote-Extra-Scopes", "all"), ("x_remote_group", "g")], &[])]
    #[case::forwarding(&[("x-forwarded-for", "1.2.3.4"), ("x-forwarded-uri", "/"), ("forwarded", "for=1")], &[])]
    #[case::audit(&[("audit-id", "x"), ("x-real-ip", "1.2.3.4")], &[])]
    #[case::hop_by_hop(&[("te", "trailers"), ("keep-alive", "1"), ("upgrade", "h2c"), ("trailer", "x")], &[])]
    #[case::named_by_connection(
        &[("connection", "X-Mine, authorization"), ("connection", "close"), ("x-mine", "1"), ("x-other", "2")],
        &[("x-other", "2")]
    )]
    #[case::host(&[("host", "kubernetes.default.svc"), ("expect", "100-continue")], &[])]
    #[case::websocket(
        &[("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.Zm9v, v5.channel.k8s.io")],
        &[("sec-websocket-protocol", "v5.channel.k8s.io")]
    )]
    #[case::websocket_lines(
        &[
            ("sec-websocket-protocol", "v5.channel.k8s.io,v4.channel.k8s.io"),
            ("sec-websocket-protocol", "BASE64URL.bearer.authorization.k8s.io.Zm9v"),
        ],
        &[("sec-websocket-protocol", "v5.channel.k8s.io, v4.channel.k8s.io")]
    )]
    #[case::traces(
        &[("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), ("tracestate", "a=1"), ("tracestate", "b=2")],
        &[("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), ("tracestate", "a=1"), ("tracestate", "b=2")]
    )]
    #[case::websocket_alone(&[("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.Zm9v")], &[])]
    fn strips(#[case] before: &[(&str, &str)], #[case] after: &[(&str, &str)]) {
        let mut map = headers(before);
        strip(&mut map);
        assert_eq!(map, headers(after));
    }

    proptest! {
        /// Invariant 2: nothing that carries identity survives, whatever stands beside it.
        #[test]
        fn nothing_that_carries_identity_survives(
            names in proptest::collection::vec(
                prop_oneof![
                    "x-remote-[a-z]{1,8}", "x-forwarded-[a-z]{1,8}", "impersonate-[a-z]{1,8}",
                    Just("authorization".to_owned()), Just("audit-id".to_owned()), "[a-z]{1,8}"
                ],
                0..12,
            ),
        ) {
            let mut map = HeaderMap::new();
            for name in &names {
                map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static("v"));
            }
            strip(&mut map);
            // In words of its own: what the code takes for identity is what is in question.
            let is_plain = |name: &HeaderName| {
                let name = name.as_str();
                !["x-remote-", "x-forwarded-", "impersonate-"].iter().any(|prefix| name.starts_with(prefix))
                    && !["authorization", "audit-id"].contains(&name)
            };
            prop_assert!(map.keys().all(is_plain), "{:?}", map);
        }
    }
}
