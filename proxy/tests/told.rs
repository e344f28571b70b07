//! How errors are told: in one line, each thing once; by the program too, where it can't go on.
#![allow(clippy::unwrap_used, reason = "a test's helpers panic as tests do")]

use std::{error::Error, io, net::TcpListener, path::PathBuf, process::Command, sync::Arc};

use understudy::{
    admin::AdminError,
    audit::AuditError,
    credentials::{BearerToken, CredentialError},
    files::ReadError,
    told::{self, Last},
    upstream::dial::UpstreamError,
};

fn gone() -> io::Error {
    io::Error::from(io::ErrorKind::NotFound)
}

/// Errors of ours as they come about, each with a cause.
fn known() -> Vec<Box<dyn Error>> {
    let path = PathBuf::from("/somewhere");
    let unreadable = || ReadError::Unreadable {
        path: path.clone(),
        source: gone(),
    };
    let Err(token) = BearerToken::parse("") else {
        panic!("no token at all");
    };
    vec![
        Box::new(unreadable()),
        Box::new(CredentialError::Unreadable(Arc::new(unreadable()))),
        Box::new(CredentialError::Malformed {
            path: path.clone(),
            source: token,
        }),
        Box::new(AuditError::Open {
            destination: "/somewhere".to_owned(),
            source: gone(),
        }),
        Box::new(AdminError::Listen {
            address: ([127, 0, 0, 1], 9902).into(),
            source: gone(),
        }),
        Box::new(UpstreamError::Connect {
            url: "https://example.org".to_owned(),
            source: gone(),
        }),
    ]
}

#[test]
fn what_is_known_to_fail_says_each_thing_once_and_leaves_nothing_out() {
    let known = known();
    let with_cause = known.iter().filter(|error| error.source().is_some()).count();
    assert!(with_cause >= 4, "they have causes: {known:?}");
    for error in &known {
        let text = told::once(error.as_ref());
        let mut cause = Some(error.as_ref());
        while let Some(next) = cause {
            assert_eq!(text.matches(&next.to_string()).count(), 1, "{text}");
            cause = next.source();
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the outer")]
struct Outer(#[source] io::Error);

#[test]
fn what_a_text_leaves_out_stands_behind_it() {
    assert_eq!(told::once(&Outer(gone())), "the outer: entity not found");
    let context = anyhow::Error::from(Outer(gone())).context("at its start");
    assert_eq!(
        format!("{:?}", Last::from(context)),
        "at its start: the outer: entity not found"
    );
}

#[test]
fn the_last_line_says_why_once() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_understudy"))
        .args(["agent", "--sessions", "/somewhere", "--admin-address", &address])
        .env("RUST_BACKTRACE", "1")
        .env("RUST_LOG", "off")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    let expected = format!(
        "Error: cannot listen on the admin address {address} (Address already in use (os error 98)): choose another with --admin-address, or end what holds it\n"
    );
    assert_eq!(said, expected);
}
