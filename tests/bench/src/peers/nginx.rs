//! nginx as a proxy of the API server: nothing buffered, for watches must be seen at once.

use std::{fmt::Write as _, path::Path};

use anyhow::Result;

use super::{STRIPPED, Start, Terms, write};

pub(super) fn start(terms: &Terms, program: &Path) -> Result<Start> {
    let file = write(terms, "nginx.conf", &configuration(terms))?;
    let arguments = [
        "-c",
        &file,
        "-p",
        &terms.directory.display().to_string(),
        "-e",
        "stderr",
    ];
    Ok(Start {
        program: program.to_owned(),
        arguments: arguments.map(str::to_owned).into(),
    })
}

pub(super) fn configuration(terms: &Terms) -> String {
    let Terms {
        listen,
        upstream,
        name,
        directory,
        open_files,
        ..
    } = terms;
    let (ca, certificate, key) = (terms.ca.display(), terms.certificate.display(), terms.key.display());
    let directory = directory.display();
    // An empty value keeps a field from being passed on; those that are set are set once for all.
    let mut fields = String::new();
    // Writing to a String cannot fail.
    for name in STRIPPED {
        if !terms.headers.iter().any(|(set, _)| set.eq_ignore_ascii_case(name)) {
            let _ = writeln!(fields, "      proxy_set_header {name} \"\";");
        }
    }
    for (name, value) in &terms.headers {
        let _ = writeln!(fields, "      proxy_set_header {name} \"{value}\";");
    }
    format!(
        r#"daemon off;
master_process off;
worker_processes 1;
worker_rlimit_nofile {open_files};
user root;
pid {directory}/nginx.pid;
error_log stderr error;
events {{ worker_connections {open_files}; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  tcp_nodelay on;
  keepalive_timeout 1d;
  keepalive_requests 1000000000;
  http2_max_concurrent_streams 250;
  client_max_body_size 0;
  proxy_headers_hash_max_size 2048;
  proxy_headers_hash_bucket_size 128;
  map $http_upgrade $connection_upgrade {{ default upgrade; "" ""; }}
  upstream api {{
    server {upstream};
    keepalive 512;
    keepalive_requests 1000000000;
    keepalive_timeout 1d;
  }}
  server {{
    listen {listen} ssl http2 backlog=4096;
    ssl_certificate {certificate};
    ssl_certificate_key {key};
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_cache shared:tls:10m;
    location / {{
      proxy_pass https://api;
      proxy_http_version 1.1;
      proxy_ssl_verify on;
      proxy_ssl_trusted_certificate {ca};
      proxy_ssl_name {name};
      proxy_ssl_server_name on;
      proxy_ssl_session_reuse on;
      proxy_buffering off;
      proxy_request_buffering off;
      proxy_read_timeout 1d;
      proxy_send_timeout 1d;
      proxy_set_header Host {name};
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
{fields}    }}
  }}
}}
"#
    )
}
