//! A plain GET, for addresses without TLS: the agent's own health and metrics.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use http::{Request, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(10);

/// Sends a plain GET and prints the answer's body; fails where the status is not 2xx.
#[derive(Debug, Args)]
pub(crate) struct Get {
    /// An `http://` URL.
    url: Uri,
    /// Ask again for so many seconds until the status is 2xx.
    #[arg(long, default_value_t = 0)]
    wait: u64,
}

impl Get {
    pub(crate) async fn run(self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(self.wait);
        loop {
            match timeout(ANSWER, self.once())
                .await
                .context("no answer in time")
                .flatten()
            {
                Ok(body) => {
                    super::say(body);
                    return Ok(());
                }
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    }

    async fn once(&self) -> Result<String> {
        let authority = self.url.authority().context("the URL has no host")?;
        let address = (
            authority.host().trim_matches(['[', ']']),
            authority.port_u16().unwrap_or(80),
        );
        let stream = TcpStream::connect(address).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let path = self.url.path_and_query().map_or("/", |path| path.as_str());
        let request = Request::get(path)
            .header(header::HOST, authority.as_str())
            .body(Empty::<&[u8]>::new())?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = String::from_utf8(answer.into_body().collect().await?.to_bytes().to_vec())?;
        if !status.is_success() {
            bail!("{status}: {body}");
        }
        Ok(body)
    }
}
