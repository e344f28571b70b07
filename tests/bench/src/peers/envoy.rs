//! Envoy, one worker, its configuration static.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::{STRIPPED, Start, Terms, write};

pub(super) fn start(terms: &Terms, program: &Path) -> Result<Start> {
    let file = write(terms, "envoy.json", &configuration(terms).to_string())?;
    let arguments = [
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "--log-level",
        "error",
        "-c",
        &file,
    ];
    Ok(Start {
        program: program.to_owned(),
        arguments: arguments.map(str::to_owned).into(),
    })
}

pub(super) fn configuration(terms: &Terms) -> Value {
    let address = |address: std::net::SocketAddr| json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}});
    let name = &terms.name;
    // Envoy takes off before it puts on, so a field may be in both lists.
    let set: Vec<Value> = terms
        .headers
        .iter()
        .map(|(name, value)| json!({"header": {"key": name, "value": value}, "append_action": "APPEND_IF_EXISTS_OR_ADD"}))
        .collect();
    let router = json!({
        "name": "envoy.filters.http.router",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
            "suppress_envoy_headers": true,
        },
    });
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "pods",
        "codec_type": "AUTO",
        "generate_request_id": false,
        "skip_xff_append": true,
        "stream_idle_timeout": "0s",
        "common_http_protocol_options": {"idle_timeout": "0s"},
        "http2_protocol_options": {"max_concurrent_streams": 250},
        "upgrade_configs": [{"upgrade_type": "websocket"}, {"upgrade_type": "SPDY/3.1"}],
        "http_filters": [router],
        "route_config": {
            "name": "api",
            "virtual_hosts": [{
                "name": "api",
                "domains": ["*"],
                "routes": [{
                    "match": {"prefix": "/"},
                    "route": {"cluster": "api", "timeout": "0s", "idle_timeout": "0s", "host_rewrite_literal": name},
                    "request_headers_to_remove": STRIPPED,
                    "request_headers_to_add": set,
                }],
            }],
        },
    });
    let many = 1_000_000;
    let no_limits = json!({
        "priority": "DEFAULT", "max_connections": many, "max_pending_requests": many, "max_requests": many,
    });
    json!({
        "static_resources": {
            "listeners": [{
                "name": "pods",
                "address": address(terms.listen),
                "tcp_backlog_size": 4096,
                "filter_chains": [{
                    "transport_socket": {
                        "name": "envoy.transport_sockets.tls",
                        "typed_config": {
                            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                            "common_tls_context": {
                                "alpn_protocols": ["h2", "http/1.1"],
                                "tls_certificates": [{
                                    "certificate_chain": {"filename": terms.certificate},
                                    "private_key": {"filename": terms.key},
                                }],
                            },
                        },
                    },
                    "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
                }],
            }],
            "clusters": [{
                "name": "api",
                "type": "STATIC",
                "connect_timeout": "10s",
                "circuit_breakers": {"thresholds": [no_limits]},
                "load_assignment": {
                    "cluster_name": "api",
                    "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(terms.upstream)}}]}],
                },
                "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                        "explicit_http_config": {"http_protocol_options": {}},
                    },
                },
                "transport_socket": {
                    "name": "envoy.transport_sockets.tls",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                        "sni": name,
                        "common_tls_context": {
                            "validation_context": {
                                "trusted_ca": {"filename": terms.ca},
                                "match_typed_subject_alt_names": [
                                    {"san_type": "DNS", "matcher": {"exact": name}},
                                ],
                            },
                        },
                    },
                },
            }],
        },
    })
}
