#![allow(missing_docs, clippy::pedantic, clippy::unwrap_used, clippy::print_stdout)]
use prometheus_client::metrics::counter::Counter;
use std::{collections::BTreeSet, path::PathBuf, sync::Arc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
};
use understudy::{
    admin::Readiness,
    clock::Clock,
    cluster::client::client,
    credentials::TokenFile,
    trust::{
        ServedNames, bundle,
        cluster_signed::{ClusterSigned, serve_cluster_signed},
        own_ca::{CaSecret, serve_own_ca_secret},
        roots::UpstreamRoots,
        serving::server_config,
    },
    upstream::{Upstream, pool::DialCounts, roots::Roots, target::Target},
};
#[tokio::main]
async fn main() {
    tracing_subscriber::fmt()
        .with_env_filter(std::env::var("RUST_LOG").unwrap_or("info".into()))
        .init();
    let args: Vec<String> = std::env::args().collect();
    let (mode, ca, token, port, node) = (
        &args[1],
        PathBuf::from(&args[2]),
        PathBuf::from(&args[3]),
        &args[4],
        &args[5],
    );
    let f = Counter::default();
    let roots = UpstreamRoots::follow(&ca, f.clone()).await.unwrap();
    let token = TokenFile::follow(token, Clock::system(), f.clone()).await;
    let up = Upstream::new(
        Target::parse("https://127.0.0.1:6443", None).unwrap(),
        Roots::followed(roots),
        Arc::new(DialCounts::default()),
    );
    let client = client(up, token);
    let names = |extra: &[&str]| ServedNames {
        addresses: ["10.96.0.1"].iter().chain(extra).map(|a| a.parse().unwrap()).collect(),
        ..Default::default()
    };
    let (send, recv) = watch::channel(names(&[]));
    let readiness = Readiness::default();
    let began = std::time::Instant::now();
    let cert = if mode == "signed" {
        let settings = ClusterSigned {
            node_name: node.clone(),
            signer: "kubernetes.io/kubelet-serving".into(),
            ca_file: ca.clone(),
        };
        serve_cluster_signed(
            client,
            settings,
            recv,
            Clock::system(),
            f.clone(),
            readiness.condition("certificate"),
        )
        .await
        .unwrap()
    } else {
        let c = readiness.condition("certificate");
        let (cert, own) = serve_own_ca_secret(
            client.clone(),
            CaSecret {
                namespace: "understudy-system".into(),
                name: "understudy-ca".into(),
            },
            recv,
            Clock::system(),
            f.clone(),
            &c,
        )
        .await
        .unwrap();
        std::mem::forget(c);
        let ns: BTreeSet<String> = ["team-a".to_owned()].into();
        let (ns_send, ns_recv) = watch::channel(ns);
        std::mem::forget(ns_send);
        tokio::spawn(async move {
            bundle::publish(client, ca, own, ns_recv, Counter::default())
                .await
                .unwrap()
        });
        cert
    };
    println!("serving after {:?}", began.elapsed());
    let config = server_config(cert.clone()).unwrap();
    let listener = tokio::net::TcpListener::bind(format!("0.0.0.0:{port}")).await.unwrap();
    tokio::spawn({
        let mut cert = cert.clone();
        async move {
            loop {
                cert.changed().await;
                println!("new certificate, {:?}", cert.expiry());
            }
        }
    });
    tokio::spawn(async move {
        tokio::time::sleep(std::time::Duration::from_secs(20)).await;
        println!("names change");
        send.send_replace(names(&["10.96.0.2"]));
        std::mem::forget(send);
    });
    loop {
        let (s, _) = listener.accept().await.unwrap();
        let a = tokio_rustls::TlsAcceptor::from(config.clone());
        tokio::spawn(async move {
            if let Ok(mut s) = a.accept(s).await {
                let mut b = [0; 4096];
                let _ = s.read(&mut b).await;
                let _ = s
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n")
                    .await;
                let _ = s.shutdown().await;
            }
        });
    }
}
