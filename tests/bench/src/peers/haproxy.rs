//! `HAProxy`, in two forms: what it speaks to the upstream.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};

use super::{STRIPPED, STRIPPED_PREFIXES, Start, Terms, write};

/// What it speaks to the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Upstream {
    Http1,
    Http2,
}

pub(super) fn start(terms: &Terms, program: &Path, upstream: Upstream) -> Result<Start> {
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
    let both = read(&terms.certificate)? + &read(&terms.key)?;
    let pair = write(terms, "both.pem", &both)?;
    let file = write(terms, "haproxy.cfg", &configuration(terms, upstream, &pair))?;
    Ok(Start {
        program: program.to_owned(),
        arguments: ["-db", "-f", &file].map(str::to_owned).into(),
    })
}

pub(super) fn configuration(terms: &Terms, upstream: Upstream, pair: &str) -> String {
    let (listen, to, name) = (terms.listen, terms.upstream, &terms.name);
    let ca = terms.ca.display();
    let alpn = match upstream {
        Upstream::Http1 => "http/1.1",
        Upstream::Http2 => "h2",
    };
    // Two descriptors go with a connection, and some are for other things.
    let connections = terms.open_files / 2 - 200;
    let mut rules = String::new();
    // Writing to a String cannot fail.
    for prefix in STRIPPED_PREFIXES {
        let _ = writeln!(rules, "  http-request del-header {prefix} -m beg");
    }
    for name in STRIPPED {
        if !STRIPPED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            let _ = writeln!(rules, "  http-request del-header {name}");
        }
    }
    for (name, value) in &terms.headers {
        let _ = writeln!(rules, "  http-request add-header {name} \"{value}\"");
    }
    format!(
        "global
  nbthread 1
  maxconn {connections}
  tune.h2.max-concurrent-streams 250
  ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
  mode http
  option http-keep-alive
  timeout connect 10s
  timeout client 1d
  timeout server 1d
  timeout tunnel 1d
  timeout http-keep-alive 1d
frontend pods
  bind {listen} ssl crt {pair} alpn h2,http/1.1 backlog 4096
  http-request set-header Host {name}
{rules}  default_backend api
backend api
  http-reuse always
  server api {to} ssl verify required ca-file {ca} sni str({name}) verifyhost {name} alpn {alpn}
"
    )
}
