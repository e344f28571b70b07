//! The program `apiserver`, controlled from this process.

use std::{process::Stdio, time::Duration};

use tokio::process::Command;
use understudy_tests::apiserver::Control;

#[tokio::test]
async fn the_program_comes_up_and_goes_at_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let control = dir.path().join("control");
    let mut child = Command::new(env!("CARGO_BIN_EXE_apiserver"))
        .args(["--listen", "127.0.0.1:0", "--listen", "[::1]:0", "--control"])
        .arg(&control)
        .arg("--ca-file")
        .arg(dir.path().join("ca.crt"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let overview = Control::new(&control).ready(Duration::from_secs(10)).await.unwrap();
    assert_eq!(overview.addresses.len(), 2);
    assert!(overview.addresses[1].is_ipv6());
    let ca = std::fs::read_to_string(dir.path().join("ca.crt")).unwrap();
    assert!(ca.starts_with("-----BEGIN CERTIFICATE-----"));

    let pid = nix::unistd::Pid::from_raw(child.id().unwrap().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let status = tokio::time::timeout(Duration::from_secs(5), child.wait())
        .await
        .expect("it ends")
        .unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn a_missing_file_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_apiserver"))
        .args([
            "--listen",
            "127.0.0.1:0",
            "--token-auth-file",
            "/nonexistent/tokens.csv",
        ])
        .output()
        .await
        .unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("/nonexistent/tokens.csv"), "{text}");
}
