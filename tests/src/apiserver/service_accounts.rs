//! Tokens of service accounts: made by `TokenRequest`, bound to a pod or not, and believed as kube-apiserver believes
//! them: by signature, issuer, time and audience, and while the account and the pod are those that it was made for.

use std::{collections::BTreeMap, path::PathBuf, time::SystemTime};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
    },
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{Response, StatusCode};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use serde_json::{Value, json};

use super::{
    auth::UserInfo,
    body::Body,
    cause::Cause,
    client_certificates::CREDENTIAL_ID,
    request::ResourceTarget,
    resources::Resource,
    serve::Call,
    status::{Status, json_response},
    store::{Store, now},
};

/// Who issues them, which is also the audience of the API server itself.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// The shortest life that may be asked for, in seconds; not asked for, it is an hour.
const SHORTEST: i64 = 600;

/// Why there is no key to sign with.
#[derive(Debug, thiserror::Error)]
pub enum TokenKeyError {
    /// The file can't be read or holds no PKCS #8 key in PEM.
    #[error("cannot read the key {0}: {1}")]
    Read(PathBuf, String),
    /// It isn't a key for ECDSA on P-256.
    #[error("the key to sign tokens is refused: {0}")]
    Key(String),
    /// The claims can't be signed.
    #[error("a token can't be signed")]
    Sign,
}

/// Why a token is nobody's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum TokenError {
    #[error("invalid bearer token")]
    Invalid,
    #[error("service account token has expired")]
    Expired,
    #[error("service account token is not valid yet")]
    Early,
    #[error("token audiences {0:?} is invalid for the target audiences {1:?}")]
    Audience(Vec<String>, Vec<String>),
    #[error("service account token has been invalidated")]
    Account,
    #[error("pod has been deleted or is another one")]
    Pod,
}

/// The key that signs tokens.
pub struct TokenKey(EcdsaKeyPair);

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenKey")
    }
}

impl TokenKey {
    /// A new one.
    ///
    /// # Errors
    /// There is no randomness.
    pub fn generate() -> Result<Self, TokenKeyError> {
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)
            .map(Self)
            .map_err(|error| TokenKeyError::Key(error.to_string()))
    }

    /// From a file in the form of kube-apiserver's `--service-account-signing-key-file`: PEM of PKCS #8, for ES256.
    ///
    /// # Errors
    /// Names the file that can't be used.
    pub fn open(path: &std::path::Path) -> Result<Self, TokenKeyError> {
        let der = PrivatePkcs8KeyDer::from_pem_file(path)
            .map_err(|error| TokenKeyError::Read(path.to_owned(), error.to_string()))?;
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der())
            .map(Self)
            .map_err(|error| TokenKeyError::Key(error.to_string()))
    }

    /// A token of these claims, whatever they say.
    ///
    /// # Errors
    /// There is no randomness.
    pub fn sign(&self, claims: &Value) -> Result<String, TokenKeyError> {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&json!({"alg": "ES256", "typ": "JWT"})), part(claims));
        let signature = self
            .0
            .sign(&SystemRandom::new(), signed.as_bytes())
            .map_err(|_| TokenKeyError::Sign)?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// The claims of a token that this key has signed and that names us as its issuer. `None` for one of another kind.
    fn claims(&self, token: &str) -> Option<Result<Value, TokenError>> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (_, payload) = signed.split_once('.')?;
        let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        if claims["iss"] != ISSUER {
            return None;
        }
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.0.public_key().as_ref());
        let good = URL_SAFE_NO_PAD
            .decode(signature)
            .is_ok_and(|signature| key.verify(signed.as_bytes(), &signature).is_ok());
        Some(if good { Ok(claims) } else { Err(TokenError::Invalid) })
    }
}

/// Whose token it is, and for which of these audiences. `None` for one that isn't a service account's.
pub(crate) fn authenticate(
    key: &TokenKey,
    store: &Store,
    token: &str,
    audiences: &[String],
) -> Option<Result<(UserInfo, Vec<String>), TokenError>> {
    let claims = key.claims(token)?;
    Some(claims.and_then(|claims| judge(store, &claims, audiences)))
}

fn judge(store: &Store, claims: &Value, audiences: &[String]) -> Result<(UserInfo, Vec<String>), TokenError> {
    let seconds = seconds_now();
    if claims["exp"].as_i64().is_none_or(|end| seconds > end) {
        return Err(TokenError::Expired);
    }
    if claims["nbf"].as_i64().is_some_and(|start| seconds < start) {
        return Err(TokenError::Early);
    }
    let own = texts(&claims["aud"]);
    let common: Vec<String> = audiences
        .iter()
        .filter(|wanted| own.contains(wanted))
        .cloned()
        .collect();
    if common.is_empty() {
        return Err(TokenError::Audience(own, audiences.to_vec()));
    }
    let private = &claims["kubernetes.io"];
    let text = |value: &Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let namespace = text(private, "namespace");
    let account = &private["serviceaccount"];
    let name = text(account, "name");
    let lives = |plural: &str, wanted: &Value| {
        let resource = Resource::find("", "v1", plural)?;
        let found = store.get(resource, &namespace, wanted["name"].as_str()?).ok()?;
        (found["metadata"]["uid"] == wanted["uid"]).then_some(found)
    };
    lives("serviceaccounts", account).ok_or(TokenError::Account)?;
    let mut extra = BTreeMap::new();
    extra.insert(CREDENTIAL_ID.to_owned(), vec![format!("JTI={}", text(claims, "jti"))]);
    if private["pod"].is_object() {
        lives("pods", &private["pod"]).ok_or(TokenError::Pod)?;
    }
    for kind in ["pod", "node"] {
        for field in ["name", "uid"] {
            let value = text(&private[kind], field);
            if !value.is_empty() {
                extra.insert(format!("authentication.kubernetes.io/{kind}-{field}"), vec![value]);
            }
        }
    }
    let user = UserInfo {
        username: format!("system:serviceaccount:{namespace}:{name}"),
        uid: text(account, "uid"),
        groups: vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
        ],
        extra,
    };
    Ok((user, common))
}

/// Answers a `TokenRequest`.
pub(crate) async fn request(mut call: Call, target: &ResourceTarget) -> Result<Response<Body>, Status> {
    let mut request = call.object().await?;
    let stored = |plural: &str, name: &str| {
        let resource = Resource::find("", "v1", plural).ok_or_else(Status::no_such_path)?;
        call.shared.store.get(resource, &target.namespace, name)
    };
    let account = stored("serviceaccounts", &target.name)?;
    let mut audiences = texts(&request["spec"]["audiences"]);
    if audiences.is_empty() {
        audiences.push(ISSUER.to_owned());
    }
    let life = request["spec"]["expirationSeconds"].as_i64().unwrap_or(3600);
    if life < SHORTEST {
        let why = "may not specify a duration less than 10 minutes";
        let cause = Cause::invalid("spec.expirationSeconds", &life.to_string(), why);
        let group = "authentication.k8s.io";
        return Err(Status::invalid_object(group, "TokenRequest", "", &[cause]));
    }
    let identity = |object: &Value| json!({"name": object["metadata"]["name"], "uid": object["metadata"]["uid"]});
    let mut private = json!({"namespace": target.namespace, "serviceaccount": identity(&account)});
    let bound = request["spec"]["boundObjectRef"].clone();
    if let Some(name) = bound["name"].as_str() {
        if bound["kind"] != "Pod" {
            return Err(Status::bad_request(format!(
                "cannot bind token for serviceaccount {:?} to an object of the type {}",
                target.name, bound["kind"]
            )));
        }
        let pod = stored("pods", name)?;
        if pod["spec"]["serviceAccountName"] != target.name {
            return Err(Status::bad_request(format!(
                "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                target.name
            )));
        }
        let wanted = bound["uid"].as_str().unwrap_or_default();
        if !wanted.is_empty() && pod["metadata"]["uid"] != wanted {
            let why = format!(
                "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might \
                 have been deleted and then recreated"
            );
            return Err(Status::precondition("", "pods", name, &why));
        }
        private["pod"] = identity(&pod);
        if let Some(node) = pod["spec"]["nodeName"].as_str() {
            let found = Resource::find("", "v1", "nodes").and_then(|nodes| call.shared.store.get(nodes, "", node).ok());
            private["node"] = found.map_or_else(|| json!({"name": node}), |node| identity(&node));
        }
    }
    let start = seconds_now();
    let claims = json!({
        "iss": ISSUER, "aud": audiences, "iat": start, "nbf": start, "exp": start + life,
        "jti": uuid::Uuid::new_v4().to_string(), "kubernetes.io": private,
        "sub": format!("system:serviceaccount:{}:{}", target.namespace, target.name),
    });
    let token = call
        .shared
        .token_key
        .sign(&claims)
        .map_err(|error| Status::bad_request(error.to_string()))?;
    let end = jiff::Timestamp::from_second(start + life).map_err(|error| Status::bad_request(error.to_string()))?;
    request["kind"] = json!("TokenRequest");
    request["apiVersion"] = json!("authentication.k8s.io/v1");
    request["metadata"] = json!({
        "name": target.name, "namespace": target.namespace, "creationTimestamp": now(),
    });
    request["spec"]["audiences"] = json!(audiences);
    request["spec"]["expirationSeconds"] = json!(life);
    request["status"] = json!({"token": token, "expirationTimestamp": end.to_string()});
    Ok(json_response(StatusCode::CREATED, &request))
}

fn texts(list: &Value) -> Vec<String> {
    let items = list.as_array().into_iter().flatten().filter_map(Value::as_str);
    items.map(ToOwned::to_owned).collect()
}

fn seconds_now() -> i64 {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
