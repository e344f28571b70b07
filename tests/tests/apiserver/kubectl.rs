//! The real kubectl, unmodified, against the server.

use std::{
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use rstest::rstest;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::Command,
    time::timeout,
};
use understudy_tests::apiserver::EventType;

use crate::{ADMIN, AGENT, Fixture, POD};

const LIMIT: Duration = Duration::from_secs(30);

struct Kubectl {
    fixture: Fixture,
}

impl Kubectl {
    async fn new() -> Self {
        Self {
            fixture: Fixture::start().await,
        }
    }

    fn command(&self, token: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", self.fixture.dir.path())
            .arg("--kubeconfig=/dev/null")
            .arg(format!("--server=https://{}", self.fixture.server.addresses()[0]))
            .arg(format!(
                "--certificate-authority={}",
                self.fixture.path("ca.crt").display()
            ))
            .arg(format!("--token={token}"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, token: &str, arguments: &[&str]) -> Output {
        output(self.command(token, arguments)).await
    }

    async fn succeed(&self, token: &str, arguments: &[&str]) -> String {
        let output = self.run(token, arguments).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.fixture.path(name);
        std::fs::write(&path, text).unwrap();
        Path::display(&path).to_string()
    }
}

async fn output(mut command: Command) -> Output {
    timeout(LIMIT, command.output())
        .await
        .expect("kubectl ends in time")
        .expect("kubectl is installed")
}

#[tokio::test]
async fn whoami() {
    let kubectl = Kubectl::new().await;
    let itself = kubectl
        .succeed(POD, &["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"])
        .await;
    assert_eq!(itself, "system:serviceaccount:support:shell");
    let other = kubectl
        .succeed(
            AGENT,
            &[
                "auth",
                "whoami",
                "--as=system:serviceaccount:prod:viewer",
                "-o",
                "jsonpath={.status.userInfo.groups}",
            ],
        )
        .await;
    assert_eq!(
        other,
        r#"["system:serviceaccounts","system:serviceaccounts:prod","system:authenticated"]"#
    );
}

#[tokio::test]
async fn get_prints_the_table_and_the_refusal() {
    let kubectl = Kubectl::new().await;
    let table = kubectl.succeed(ADMIN, &["get", "pods"]).await;
    assert!(table.starts_with("NAME    READY   STATUS    RESTARTS"), "{table}");
    assert!(table.contains("web-0   1/1     Running   0"), "{table}");
    let refused = kubectl.run(POD, &["get", "pods"]).await;
    assert_eq!(
        String::from_utf8_lossy(&refused.stderr),
        "Error from server (Forbidden): pods is forbidden: User \"system:serviceaccount:support:shell\" cannot list \
         resource \"pods\" in API group \"\" in the namespace \"default\"\n"
    );
    let can = kubectl.run(POD, &["auth", "can-i", "list", "pods"]).await;
    assert_eq!(String::from_utf8_lossy(&can.stdout), "no\n");
}

#[tokio::test]
async fn apply_creates_changes_and_leaves_alone() {
    let kubectl = Kubectl::new().await;
    let manifest = |value: &str| {
        let text = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: one}}\ndata: {{k: {value}}}\n");
        kubectl.write("one.yaml", &text)
    };
    for (value, outcome) in [("a", "created"), ("b", "configured"), ("b", "unchanged")] {
        let printed = kubectl.succeed(ADMIN, &["apply", "-f", &manifest(value)]).await;
        assert_eq!(printed, format!("configmap/one {outcome}\n"));
    }
    let server_side = ["apply", "--server-side", "--force-conflicts", "-f", &manifest("c")];
    assert_eq!(
        kubectl.succeed(ADMIN, &server_side).await,
        "configmap/one serverside-applied\n"
    );
    let data = kubectl
        .succeed(ADMIN, &["get", "cm", "one", "-o", "jsonpath={.data.k}"])
        .await;
    assert_eq!(data, "c");
    kubectl
        .succeed(ADMIN, &["create", "configmap", "two", "--from-literal=k=v"])
        .await;
    kubectl.succeed(ADMIN, &["delete", "configmap", "one", "two"]).await;
    assert!(!kubectl.run(ADMIN, &["get", "cm", "one"]).await.status.success());
}

#[tokio::test]
async fn watch_prints_events_as_they_come() {
    let kubectl = Kubectl::new().await;
    let mut child = kubectl
        .command(ADMIN, &["get", "configmaps", "--watch", "-o", "name"])
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let control = &kubectl.fixture.control;
    control
        .wait_for(LIMIT, |request| request.uri.contains("watch=true"))
        .await
        .unwrap();
    for name in ["one", "two"] {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
        control.push(EventType::Added, object).await.unwrap();
        let line = timeout(LIMIT, lines.next_line()).await.unwrap().unwrap();
        assert_eq!(line, Some(format!("configmap/{name}")));
    }
}

#[tokio::test]
async fn logs_follow() {
    let kubectl = Kubectl::new().await;
    let mut child = kubectl.command(ADMIN, &["logs", "-f", "web-0"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for number in 1..=6 {
        let line = timeout(LIMIT, lines.next_line()).await.unwrap().unwrap();
        assert_eq!(line, Some(format!("web-0 line {number}")));
    }
}

#[rstest]
#[tokio::test]
async fn exec(#[values("true", "false")] websockets: &str) {
    let kubectl = Kubectl::new().await;
    let command = |arguments: &[&str]| {
        let mut command = kubectl.command(ADMIN, arguments);
        command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets);
        command
    };
    let mut child = command(&["exec", "-i", "web-0", "--", "cat"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"hello\n").await.unwrap();
    let echoed = timeout(LIMIT, child.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(String::from_utf8_lossy(&echoed.stderr), "");
    assert_eq!(echoed.stdout, b"hello\n");

    let failed = output(command(&[
        "exec",
        "web-0",
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 3",
    ]))
    .await;
    assert_eq!(failed.status.code(), Some(3));
    assert_eq!(failed.stdout, b"out\n");
    assert!(failed.stderr.starts_with(b"err\n"));

    let long = output(command(&["exec", "web-0", "--", "head", "-c", "3000000", "/dev/zero"])).await;
    assert_eq!(long.stdout.len(), 3_000_000);

    let method = if websockets == "true" { "GET" } else { "POST" };
    let requests = kubectl.fixture.control.requests().await.unwrap();
    let execs: Vec<_> = requests
        .iter()
        .filter(|request| request.path().ends_with("/exec"))
        .map(|request| (request.method.as_str(), request.code))
        .collect();
    assert_eq!(execs, [(method, Some(101)); 3]);
}

#[rstest]
#[tokio::test]
async fn port_forward(#[values("true", "false")] websockets: &str) {
    let kubectl = Kubectl::new().await;
    let mut child = kubectl
        .command(ADMIN, &["port-forward", "--address=127.0.0.1", "pod/web-0", ":80"])
        .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = timeout(LIMIT, lines.next_line()).await.unwrap().unwrap().unwrap();
    let address = line
        .strip_prefix("Forwarding from ")
        .and_then(|rest| rest.split(" -> ").next())
        .unwrap();
    let sent = vec![7; 300_000];
    for _ in 0..2 {
        let (mut reader, mut writer) = TcpStream::connect(address).await.unwrap().into_split();
        let mut received = Vec::new();
        let write = async {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let exchange = async { tokio::join!(write, reader.read_to_end(&mut received)).1 };
        timeout(LIMIT, exchange).await.unwrap().unwrap();
        assert!(received == sent, "{} bytes came back", received.len());
    }
}
