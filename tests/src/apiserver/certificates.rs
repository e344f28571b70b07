//! Certificate signing requests: what may be asked, who may approve, and the signer of `kubernetes.io/kubelet-serving`,
//! with the rules and the words of kube-controller-manager. Requests for other signers stay as they are.

use std::time::{Duration, SystemTime};

use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::{
    CertificateSigningRequestParams, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    auth::UserInfo,
    cause::Cause,
    rbac::Rules,
    request::{Attributes, ResourceTarget, Target},
    resources::Resource,
    status::Status,
    store::{Store, now},
    tls::TlsError,
};

/// The signer that is played here.
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
/// How far back a certificate begins, for clocks that are slow.
const BACKDATE: Duration = Duration::from_mins(5);
/// The shortest life that may be asked for, in seconds.
const SHORTEST: i64 = 600;

/// The cluster's CA, and how long what it signs lasts.
pub(crate) struct Signer {
    issuer: Issuer<'static, KeyPair>,
    longest: Duration,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer")
            .field("longest", &self.longest)
            .finish_non_exhaustive()
    }
}

impl Signer {
    /// From the CA's certificate and key, in PEM.
    pub(crate) fn new(certificate: &str, key: &str, longest: Duration) -> Result<Self, TlsError> {
        let issuer = Issuer::from_ca_cert_pem(certificate, KeyPair::from_pem(key)?)?;
        Ok(Self { issuer, longest })
    }

    /// Signs a request, or says why not, in kube-controller-manager's words.
    fn sign(&self, spec: &Value) -> Result<String, Refusal> {
        let mut request = parse(spec).map_err(|_| Refusal::Unreadable)?;
        let usages: Vec<&str> = spec["usages"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        kubelet_serving(&request, &usages).map_err(Refusal::Invalid)?;
        let asked = spec["expirationSeconds"].as_u64().map(Duration::from_secs);
        let life = match asked {
            // What may be asked for has a shortest; what is given without asking hasn't.
            Some(asked) if asked < self.longest => asked.max(Duration::from_secs(SHORTEST.unsigned_abs())),
            _ => self.longest,
        };
        let since_epoch = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let now = rcgen::date_time_ymd(1970, 1, 1) + since_epoch;
        let params = &mut request.params;
        params.not_before = now - BACKDATE;
        params.not_after = now + life;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if usages.contains(&"key encipherment") {
            params.key_usages.push(KeyUsagePurpose::KeyEncipherment);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = request.signed_by(&self.issuer).map_err(|_| Refusal::Unreadable)?;
        Ok(certificate.pem())
    }
}

enum Refusal {
    /// It breaks a rule of the signer.
    Invalid(String),
    /// It isn't a request that can be signed at all.
    Unreadable,
}

fn parse(spec: &Value) -> Result<CertificateSigningRequestParams, String> {
    let pem = spec["request"]
        .as_str()
        .and_then(|text| STANDARD.decode(text).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .filter(|pem| pem.contains("-----BEGIN CERTIFICATE REQUEST-----"))
        .ok_or("PEM block type must be CERTIFICATE REQUEST")?;
    CertificateSigningRequestParams::from_pem(&pem).map_err(|error| error.to_string())
}

/// The rules of `kubernetes.io/kubelet-serving`, in the order in which kube-controller-manager asks.
fn kubelet_serving(request: &CertificateSigningRequestParams, usages: &[&str]) -> Result<(), String> {
    let name = &request.params.distinguished_name;
    let text = |kind: &DnType| match name.get(kind) {
        Some(DnValue::Utf8String(text)) => Some(text.clone()),
        Some(DnValue::PrintableString(text)) => Some(text.to_string()),
        Some(DnValue::Ia5String(text)) => Some(text.to_string()),
        _ => None,
    };
    if text(&DnType::OrganizationName).as_deref() != Some("system:nodes") {
        return Err("subject organization is not system:nodes".to_owned());
    }
    let names = &request.params.subject_alt_names;
    if !names
        .iter()
        .any(|name| matches!(name, SanType::DnsName(_) | SanType::IpAddress(_)))
    {
        return Err("DNS or IP subjectAltName is required".to_owned());
    }
    if names.iter().any(|name| matches!(name, SanType::Rfc822Name(_))) {
        return Err("Email subjectAltNames are not allowed".to_owned());
    }
    if names.iter().any(|name| matches!(name, SanType::URI(_))) {
        return Err("URI subjectAltNames are not allowed".to_owned());
    }
    let mut usages = usages.to_vec();
    usages.sort_unstable();
    usages.dedup();
    let full = ["digital signature", "key encipherment", "server auth"];
    if usages != full && usages != ["digital signature", "server auth"] {
        return Err(format!("usages did not match [{}]", full.join(" ")));
    }
    if !text(&DnType::CommonName).is_some_and(|name| name.starts_with("system:node:")) {
        return Err("subject common name does not begin with system:node:".to_owned());
    }
    Ok(())
}

/// A request as it is created: who asks is what authentication says, whatever the request does.
pub(crate) fn prepare(object: &mut Value, user: &UserInfo) {
    let spec = &mut object["spec"];
    if let Some(spec) = spec.as_object_mut() {
        for field in ["username", "uid", "groups", "extra"] {
            spec.remove(field);
        }
    }
    spec["username"] = json!(user.username);
    spec["groups"] = json!(user.groups);
    if !user.uid.is_empty() {
        spec["uid"] = json!(user.uid);
    }
    if !user.extra.is_empty() {
        spec["extra"] = json!(user.extra);
    }
    object["status"] = json!({});
}

/// What a request is refused for.
pub(crate) fn refusals(object: &Value) -> Vec<Cause> {
    let spec = &object["spec"];
    let mut causes = Vec::new();
    if let Err(problem) = parse(spec) {
        causes.push(Cause::invalid("spec.request", &spec["request"].to_string(), &problem));
    }
    if spec["usages"].as_array().is_none_or(Vec::is_empty) {
        causes.push(Cause::required("spec.usages", ""));
    }
    match spec["signerName"].as_str() {
        None | Some("") => causes.push(Cause::required("spec.signerName", "")),
        Some(name) if !name.contains('/') => {
            let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
            causes.push(Cause::invalid("spec.signerName", &format!("{name:?}"), why));
        }
        Some(_) => {}
    }
    if let Some(seconds) = spec["expirationSeconds"].as_i64().filter(|seconds| *seconds < SHORTEST) {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        causes.push(Cause::invalid("spec.expirationSeconds", &seconds.to_string(), why));
    }
    causes
}

/// What a change through the `approval` subresource leaves: the conditions, with their times.
pub(crate) fn approve(old: &Value, new: &mut Value) -> Result<(), Status> {
    let of = |object: &Value, kind: &str| {
        object["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|condition| condition["type"] == kind)
            .cloned()
    };
    let refuse = |cause: Cause| {
        let name = old["metadata"]["name"].as_str().unwrap_or_default();
        Status::invalid_object("certificates.k8s.io", "CertificateSigningRequest", name, &[cause])
    };
    for kind in ["Approved", "Denied", "Failed"] {
        if of(old, kind).is_some() && of(new, kind).is_none() {
            let why = format!("updates may not remove a condition of type {kind:?}");
            return Err(refuse(Cause::forbidden("status.conditions", &why)));
        }
    }
    if of(new, "Approved").is_some() && of(new, "Denied").is_some() {
        let why = "Approved and Denied conditions are mutually exclusive";
        return Err(refuse(Cause::invalid("status.conditions", "\"Denied\"", why)));
    }
    let conditions = new["status"]["conditions"].clone();
    let mut status = old["status"].clone();
    if !conditions.is_null() {
        status["conditions"] = conditions;
    }
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        for field in ["lastUpdateTime", "lastTransitionTime"] {
            if condition[field].is_null() {
                condition[field] = json!(now());
            }
        }
    }
    new["status"] = status;
    Ok(())
}

/// Whether the user may use that verb (`approve`, `sign`) on the request's signer, beside the right to its subresource.
pub(crate) fn admit(rules: &Rules, user: &UserInfo, verb: &str, request: &Value) -> Result<(), Status> {
    let signer = request["spec"]["signerName"].as_str().unwrap_or_default();
    let domain = signer.split('/').next().unwrap_or_default();
    let may = |name: String| {
        let target = ResourceTarget {
            group: "certificates.k8s.io".to_owned(),
            version: "*".to_owned(),
            resource: "signers".to_owned(),
            name,
            ..ResourceTarget::default()
        };
        let attributes = Attributes {
            verb: verb.to_owned(),
            target: Target::Resource(target),
        };
        rules.allow(user, &attributes)
    };
    if may(signer.to_owned()) || may(format!("{domain}/*")) {
        return Ok(());
    }
    let name = request["metadata"]["name"].as_str().unwrap_or_default();
    Err(Status::not_admitted(
        "certificates.k8s.io",
        "certificatesigningrequests",
        name,
        &format!("user not permitted to {verb} requests with signerName {signer:?}"),
    ))
}

/// Signs what is approved, from now until the server stops.
pub(crate) async fn run(shared: std::sync::Arc<Shared>, signer: Signer, stop: CancellationToken) {
    let Some(resource) = Resource::find("certificates.k8s.io", "v1", "certificatesigningrequests") else {
        return;
    };
    loop {
        let Ok(mut watch) = shared.store.subscribe(resource, "", None) else {
            return;
        };
        for event in &watch.backlog {
            look(&shared.store, resource, &signer, &event.object);
        }
        loop {
            let event = tokio::select! {
                event = watch.feed.recv() => event,
                () = stop.cancelled() => return,
            };
            match event {
                Ok(event) => look(&shared.store, resource, &signer, &event.object),
                // Too far behind: begin with all that there is.
                Err(_) => break,
            }
        }
    }
}

fn look(store: &Store, resource: &'static Resource, signer: &Signer, request: &Value) {
    let has = |kind: &str| {
        let conditions = request["status"]["conditions"].as_array();
        conditions.is_some_and(|list| list.iter().any(|condition| condition["type"] == kind))
    };
    let due = request["spec"]["signerName"] == KUBELET_SERVING
        && has("Approved")
        && !has("Denied")
        && !has("Failed")
        && request["status"]["certificate"].is_null();
    if !due {
        return;
    }
    let outcome = match signer.sign(&request["spec"]) {
        Ok(pem) => Ok(STANDARD.encode(pem)),
        Err(Refusal::Invalid(message)) => Err(json!({
            "type": "Failed", "status": "True", "reason": "SignerValidationFailure", "message": message,
            "lastUpdateTime": now(), "lastTransitionTime": now(),
        })),
        Err(Refusal::Unreadable) => {
            tracing::warn!("a signing request that cannot be signed");
            return;
        }
    };
    let name = request["metadata"]["name"].as_str().unwrap_or_default();
    let written = store.update(resource, "", name, |old| {
        let mut new = old.clone();
        match outcome {
            Ok(certificate) => new["status"]["certificate"] = json!(certificate),
            Err(condition) => {
                if let Some(list) = new["status"]["conditions"].as_array_mut() {
                    list.push(condition);
                }
            }
        }
        Ok(new)
    });
    if let Err(error) = written {
        tracing::debug!(%error, "the signing request went away");
    }
}
