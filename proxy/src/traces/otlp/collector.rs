//! The collector: where it is, who vouches for it, and one connection to it, over the agent's own TLS.

use std::{io, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response, Uri, header, uri::Authority};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{RetryPolicy, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{Resource, trace::SpanExporter as _};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::Mutex,
};

use super::super::{TracesError, TracesOptions};
use crate::{
    tls,
    trust::roots::{client_config, load_roots},
    upstream::target::{Target, is_here},
};

/// The variables that name the collector: for traces as a whole, otherwise for all signals, beneath which traces have a path.
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const PATH: &str = "/v1/traces";
const CERTIFICATE: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
];
const PROTOCOL: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
const HTTP_PROTOBUF: &str = "http/protobuf";

/// An answer is read so far.
const ANSWER_LIMIT: usize = 64 * 1024;

/// Where traces go: the option, or a variable. None where nothing says so.
pub(super) fn endpoint(options: &TracesOptions, lookup: impl Fn(&str) -> Option<String>) -> Option<String> {
    let of_all = || lookup(ENDPOINT).map(|url| format!("{}{PATH}", url.trim_end_matches('/')));
    options
        .traces_endpoint
        .clone()
        .or_else(|| lookup(TRACES_ENDPOINT))
        .or_else(of_all)
}

type Connection = SendRequest<Full<Bytes>>;

/// The collector, and the connection to it that is kept from batch to batch.
#[derive(Debug)]
pub(super) struct Collector {
    url: Uri,
    server: Server,
    connection: Mutex<Option<Connection>>,
}

#[derive(Debug)]
enum Server {
    Tls {
        target: Target,
        ca: PathBuf,
    },
    Plain {
        authority: Authority,
        /// Only where it turns out to be on this node.
        loopback_only: bool,
    },
}

impl Collector {
    /// Looks at what is to be dialled, and at who vouches for it. Nothing is dialled yet: the collector may come later.
    pub(super) async fn new(
        url: &str,
        options: &TracesOptions,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, TracesError> {
        let shown = || {
            let is_plain = !url.contains(['@', '?']);
            if is_plain {
                format!("{url:?}")
            } else {
                "the traces' endpoint".to_owned()
            }
        };
        let wrong = || TracesError::Endpoint(shown());
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let authority = uri.authority().cloned().ok_or_else(wrong)?;
        if authority.as_str().contains('@') || uri.query().is_some() {
            return Err(wrong());
        }
        let server = match uri.scheme_str() {
            Some("https") => {
                let target = Target::parse(&format!("https://{authority}"), None).map_err(|_| wrong())?;
                let named = || CERTIFICATE.into_iter().find_map(&lookup).map(PathBuf::from);
                let ca = options.traces_ca_file.clone().or_else(named);
                let ca = ca.ok_or_else(|| TracesError::NoCa(shown()))?;
                load_roots(&ca).await?;
                Server::Tls { target, ca }
            }
            Some("http") => {
                if !options.traces_allow_plaintext && !is_here(authority.host()) {
                    return Err(TracesError::Plaintext(shown()));
                }
                Server::Plain {
                    authority,
                    loopback_only: !options.traces_allow_plaintext,
                }
            }
            _ => return Err(wrong()),
        };
        Ok(Self {
            url: uri,
            server,
            connection: Mutex::default(),
        })
    }

    /// What writes spans as OTLP and sends them here. It heeds `OTEL_EXPORTER_OTLP_HEADERS` by itself.
    pub(super) fn exporter(
        self,
        resource: &Resource,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<SpanExporter, TracesError> {
        let protocol = PROTOCOL.into_iter().find_map(|name| Some((name, lookup(name)?)));
        if let Some((variable, value)) = protocol.filter(|(_, value)| value != HTTP_PROTOBUF) {
            return Err(TracesError::Variable {
                variable,
                value,
                advice: "traces are sent by http/protobuf only",
            });
        }
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_endpoint(self.url.to_string())
            .with_http_client(self)
            // Between attempts it would put the thread to sleep, and with it whatever else runs there.
            .with_retry_policy(RetryPolicy::default().with_max_retries(0))
            .build()
            .map_err(|error| TracesError::Exporter(error.to_string()))?;
        exporter.set_resource(resource);
        Ok(exporter)
    }

    async fn connect(&self) -> Result<Connection, HttpError> {
        match &self.server {
            Server::Tls { target, ca } => {
                let config = client_config(load_roots(ca).await?, &[b"http/1.1"])?;
                let tcp = TcpStream::connect(target.address()).await?;
                let stream = tls::connect(tcp, Arc::new(config), target.server_name().clone()).await?;
                speak(stream).await
            }
            Server::Plain {
                authority,
                loopback_only,
            } => {
                let host = authority.host().trim_start_matches('[').trim_end_matches(']');
                let tcp = TcpStream::connect((host, authority.port_u16().unwrap_or(80))).await?;
                // A name is whatever the resolver says.
                if *loopback_only && !tcp.peer_addr()?.ip().is_loopback() {
                    return Err(
                        io::Error::other("localhost is not on this node: name the collector by its address").into(),
                    );
                }
                speak(tcp).await
            }
        }
    }
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Connection, HttpError> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the connection to the collector broke");
        }
    });
    Ok(sender)
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (mut head, body) = request.into_parts();
        let authority = self.url.authority().map_or("", Authority::as_str);
        head.headers.insert(header::HOST, authority.parse()?);
        head.headers.insert(
            header::USER_AGENT,
            header::HeaderValue::from_static(concat!("understudy/", env!("CARGO_PKG_VERSION"))),
        );
        // In origin form, as a server has it.
        head.uri = head.uri.path_and_query().map_or("/", |path| path.as_str()).parse()?;
        let request = Request::from_parts(head, Full::new(body));
        let mut kept = self.connection.lock().await;
        let (answer, connection) = match kept.take().filter(|connection| !connection.is_closed()) {
            Some(connection) => match send_on(connection, request.clone()).await {
                Ok(sent) => sent,
                // It was closed while it had nothing to do.
                Err(_) => send_on(self.connect().await?, request).await?,
            },
            None => send_on(self.connect().await?, request).await?,
        };
        *kept = Some(connection);
        Ok(answer)
    }
}

/// The answer, and the connection for the next request.
async fn send_on(
    mut connection: Connection,
    request: Request<Full<Bytes>>,
) -> Result<(Response<Bytes>, Connection), HttpError> {
    connection.ready().await?;
    let (head, body) = connection.send_request(request).await?.into_parts();
    let body = Limited::new(body, ANSWER_LIMIT).collect().await?.to_bytes();
    Ok((Response::from_parts(head, body), connection))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn lookup<'v>(variables: &'v [(&'v str, &'v str)]) -> impl Fn(&str) -> Option<String> + 'v {
        move |name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        }
    }

    #[rstest]
    #[case::nowhere(None, &[], None)]
    #[case::option(Some("http://a/x"), &[(TRACES_ENDPOINT, "http://b/y")], Some("http://a/x"))]
    #[case::traces(None, &[(TRACES_ENDPOINT, "http://b/y"), (ENDPOINT, "http://c")], Some("http://b/y"))]
    #[case::all(None, &[(ENDPOINT, "http://c:4318/")], Some("http://c:4318/v1/traces"))]
    fn the_endpoint_is_what_is_said_nearest(
        #[case] option: Option<&str>,
        #[case] variables: &[(&str, &str)],
        #[case] expected: Option<&str>,
    ) {
        let options = TracesOptions {
            traces_endpoint: option.map(str::to_owned),
            ..TracesOptions::default()
        };
        assert_eq!(endpoint(&options, lookup(variables)).as_deref(), expected);
    }

    async fn refused(url: &str, allow: bool, variables: &[(&str, &str)]) -> Option<String> {
        let options = TracesOptions {
            traces_allow_plaintext: allow,
            ..TracesOptions::default()
        };
        let collector = Collector::new(url, &options, lookup(variables)).await;
        collector.err().map(|error| error.to_string())
    }

    #[tokio::test]
    async fn traces_go_in_plaintext_to_this_node_only_unless_allowed() {
        for here in [
            "http://127.0.0.1:4318/v1/traces",
            "http://[::1]:4318/x",
            "http://localhost:4318/x",
        ] {
            assert_eq!(refused(here, false, &[]).await, None, "{here}");
        }
        for away in [
            "http://192.0.2.1:4318/v1/traces",
            "http://otel.example.org/x",
            "http://localhost.example.org/x",
        ] {
            let error = refused(away, false, &[]).await.unwrap();
            assert!(error.contains("--traces-allow-plaintext"), "{error}");
            assert_eq!(refused(away, true, &[]).await, None, "{away}");
        }
    }

    #[rstest]
    #[case::no_ca("https://otel.example.org/v1/traces", &[], "--traces-ca-file")]
    #[case::ca_missing("https://otel.example.org/x", &[("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.crt")], "/nowhere/ca.crt")]
    #[case::scheme("grpc://otel.example.org", &[], "https://host:4318")]
    #[case::no_url("otel.example.org:4318", &[], "https://host:4318")]
    #[case::query("https://otel.example.org/x?key=geheim", &[], "without a user or a query")]
    #[case::user("https://u:geheim@otel.example.org/x", &[], "without a user or a query")]
    #[tokio::test]
    async fn what_is_wrong_is_said(#[case] url: &str, #[case] variables: &[(&str, &str)], #[case] advice: &str) {
        let error = refused(url, false, variables).await.unwrap();
        assert!(error.contains(advice) && !error.contains("geheim"), "{error}");
    }
}
