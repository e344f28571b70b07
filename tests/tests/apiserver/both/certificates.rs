//! Certificate signing requests: asked by the agent, approved by whoever may, signed by the cluster.

use std::time::Duration;

use anyhow::{Context as _, Result};
use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use rstest::rstest;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};
use understudy_tests::node::{ServerOptions, binaries, eventually};
use x509_parser::{extensions::ParsedExtension, prelude::FromDer, prelude::X509Certificate};

use super::{Box, JSON, MERGE};

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const SERVING: &str = "kubernetes.io/kubelet-serving";

struct Wanted {
    organization: &'static str,
    name: &'static str,
    names: Vec<SanType>,
    usages: &'static [&'static str],
}

fn proper() -> Wanted {
    Wanted {
        organization: "system:nodes",
        name: "system:node:box",
        names: vec![
            SanType::DnsName("kubernetes.default.svc".try_into().unwrap()),
            SanType::IpAddress("10.96.0.1".parse().unwrap()),
        ],
        usages: &["digital signature", "server auth"],
    }
}

fn request(name: &str, wanted: &Wanted) -> Value {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::OrganizationName, wanted.organization);
    params.distinguished_name.push(DnType::CommonName, wanted.name);
    params.subject_alt_names.clone_from(&wanted.names);
    let pem = params
        .serialize_request(&KeyPair::generate().unwrap())
        .unwrap()
        .pem()
        .unwrap();
    json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
        "spec": {
            "request": STANDARD.encode(pem), "signerName": SERVING, "usages": wanted.usages,
            "expirationSeconds": 1200, "username": "somebody-else",
        },
    })
}

fn approval() -> Value {
    json!({"status": {"conditions": [
        {"type": "Approved", "status": "True", "reason": "Agent", "message": "for this node"},
    ]}})
}

/// The condition of that kind, once there is one or a certificate.
async fn outcome(it: &Box, name: &str) -> Result<Value> {
    eventually("the signer has looked at the request", async || {
        let request = it.get(&format!("{REQUESTS}/{name}")).await?.object();
        let conditions = request["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let failed = conditions.into_iter().find(|condition| condition["type"] == "Failed");
        let signed = request["status"].get("certificate").cloned();
        Ok(failed.or(signed))
    })
    .await
}

fn has_signer() -> bool {
    binaries::kubebuilder_assets().is_none_or(|assets| assets.join("kube-controller-manager").exists())
}

#[tokio::test]
async fn the_agent_asks_approves_and_gets_a_certificate() -> Result<()> {
    assert!(
        has_signer(),
        "KUBEBUILDER_ASSETS has no kube-controller-manager: nobody signs there"
    );
    let life = Duration::from_mins(15);
    let it = Box::with(&ServerOptions::default().certificate_life(life)).await?;
    let agent = it.node.accounts().agent.clone();
    let asked = request("box", &proper());
    let stored = it
        .ask_as(&agent.token, "POST", REQUESTS, JSON, Some(&asked))
        .await?
        .object();
    assert_eq!(stored["spec"]["username"], agent.username());
    assert_eq!(stored["status"], json!({}));
    let one = format!("{REQUESTS}/box");
    let changed = it
        .merge(&one, &json!({"spec": {"signerName": "example.com/other"}}))
        .await?;
    assert_ne!(
        changed.json()["spec"]["signerName"],
        "example.com/other",
        "a request doesn't change"
    );

    let path = format!("{one}/approval");
    let approved = it
        .ask_as(&agent.token, "PATCH", &path, MERGE, Some(&approval()))
        .await?
        .object();
    assert!(approved["status"]["conditions"][0]["lastUpdateTime"].is_string());
    let certificate = outcome(&it, "box").await?;
    let text = certificate.as_str().context("it was signed")?;
    let der = CertificateDer::from_pem_slice(&STANDARD.decode(text)?)?;
    let (_, parsed) = X509Certificate::from_der(&der)?;
    let subject = parsed.subject().to_string();
    assert!(
        subject.contains("O=system:nodes") && subject.contains("CN=system:node:box"),
        "{subject}"
    );
    assert_eq!(parsed.issuer().to_string(), "CN=kubernetes");
    let validity = parsed.validity();
    let seconds = validity.not_after.timestamp() - validity.not_before.timestamp();
    // Asked for 20 minutes, of at most 15, and begun 5 minutes back.
    assert!((seconds - 20 * 60).abs() <= 2, "{seconds}");
    let names = parsed
        .extensions()
        .iter()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(names.general_names.len()),
            _ => None,
        });
    assert_eq!(names, Some(2));

    let removed = it.merge(&path, &json!({"status": {"conditions": []}})).await?;
    removed.refused(
        422,
        "Invalid",
        "CertificateSigningRequest.certificates.k8s.io \"box\" is invalid: status.conditions: Forbidden: updates may not \
         remove a condition of type \"Approved\"",
    );
    Ok(())
}

#[rstest]
#[case::organization(Wanted { organization: "system:other", ..proper() }, "subject organization is not system:nodes")]
#[case::no_names(Wanted { names: Vec::new(), ..proper() }, "DNS or IP subjectAltName is required")]
#[case::uri(
    Wanted { names: vec![SanType::IpAddress("10.96.0.1".parse().unwrap()), SanType::URI("spiffe://x/y".try_into().unwrap())], ..proper() },
    "URI subjectAltNames are not allowed"
)]
#[case::email(
    Wanted { names: vec![SanType::IpAddress("10.96.0.1".parse().unwrap()), SanType::Rfc822Name("a@example.com".try_into().unwrap())], ..proper() },
    "Email subjectAltNames are not allowed"
)]
#[case::client(
    Wanted { usages: &["client auth", "digital signature", "server auth"], ..proper() },
    "usages did not match [digital signature key encipherment server auth]"
)]
#[case::common_name(Wanted { name: "box", ..proper() }, "subject common name does not begin with system:node:")]
#[tokio::test]
async fn what_the_signer_refuses_fails(#[case] wanted: Wanted, #[case] message: &str) -> Result<()> {
    assert!(
        has_signer(),
        "KUBEBUILDER_ASSETS has no kube-controller-manager: nobody signs there"
    );
    let it = Box::new().await?;
    it.post(REQUESTS, &request("bad", &wanted)).await?.object();
    it.merge(&format!("{REQUESTS}/bad/approval"), &approval())
        .await?
        .object();
    let failed = outcome(&it, "bad").await?;
    assert_eq!(
        (&failed["reason"], &failed["message"]),
        (&json!("SignerValidationFailure"), &json!(message))
    );
    Ok(())
}

#[tokio::test]
async fn nobody_approves_without_the_right_on_the_signer() -> Result<()> {
    let it = Box::new().await?;
    let agent = it.node.accounts().agent.token.clone();
    let mut other = request("other", &proper());
    other["spec"]["signerName"] = json!("example.com/other");
    it.post(REQUESTS, &other).await?.object();
    it.ask_as(
        &agent,
        "PATCH",
        &format!("{REQUESTS}/other/approval"),
        MERGE,
        Some(&approval()),
    )
    .await?
    .refused(
        403,
        "Forbidden",
        "certificatesigningrequests.certificates.k8s.io \"other\" is forbidden: user not permitted to approve requests \
             with signerName \"example.com/other\"",
    );
    let mut short = request("short", &proper());
    short["spec"]["expirationSeconds"] = json!(60);
    it.post(REQUESTS, &short).await?.refused(
        422,
        "Invalid",
        "CertificateSigningRequest.certificates.k8s.io \"short\" is invalid: spec.expirationSeconds: Invalid value: 60: \
         may not specify a duration less than 600 seconds (10 minutes)",
    );
    Ok(())
}
