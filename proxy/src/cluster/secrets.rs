//! Bearer tokens in Secrets: only those that a session names are read, each by its name.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ApiResource, DynamicObject};
use secrecy::{ExposeSecret as _, SecretSlice, zeroize::Zeroize as _};
use tokio::sync::{Notify, watch};

use super::{
    ObjectKey,
    watch::{Query, Seen, follow},
};
use crate::{
    credentials::{BearerToken, CredentialError},
    metrics::{Metrics, Watched},
};

/// What a Secret holds for a session.
type Token = Result<BearerToken, Arc<str>>;

/// Follows the token at `key` of a Secret until nobody reads it any more. While the Secret can't be asked for, the last
/// token stays; when it is deleted, or holds no token there any more, there is none.
#[must_use]
pub fn follow_token(
    client: kube::Client,
    secret: ObjectKey,
    key: &str,
    metrics: &Metrics,
) -> watch::Receiver<Result<BearerToken, CredentialError>> {
    let query = Query {
        what: Watched::Secrets,
        resource: ApiResource::erase::<Secret>(&()),
        namespace: Some(secret.namespace.clone()),
        labels: None,
        fields: Some(format!("metadata.name={}", secret.name)),
    };
    let wanted = key.to_owned();
    let changed = Arc::new(Notify::new());
    let seen = follow(client, query, metrics, Arc::clone(&changed), move |object| {
        token(object, &wanted)
    });
    let (publish, token) = watch::channel(judge(&Seen::default(), &secret));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = changed.notified() => {}
                () = publish.closed() => return,
            }
            let found = judge(&seen.borrow(), &secret);
            match &found {
                Ok(_) => tracing::debug!(%secret, "read a token"),
                Err(error) => tracing::warn!(%error, "a session's token cannot be used"),
            }
            drop(publish.send_replace(found));
        }
    });
    token
}

fn judge(seen: &Seen<Token>, secret: &ObjectKey) -> Result<BearerToken, CredentialError> {
    let reason = match (&seen.objects, &seen.failing) {
        (None, None) => "it hasn't been read yet".to_owned(),
        (None, Some(error)) => format!("it can't be read: {error}: see that the agent may list and watch it"),
        (Some(objects), _) => match objects.get(secret) {
            None => "there is no such Secret: make it in the session's namespace".to_owned(),
            Some(Err(reason)) => reason.to_string(),
            Some(Ok(token)) => return Ok(token.clone()),
        },
    };
    Err(CredentialError::Secret {
        secret: secret.to_string(),
        reason,
    })
}

/// What isn't told: any part of what the Secret holds.
fn token(mut object: DynamicObject, key: &str) -> Token {
    let mut data = object.data["data"].take();
    let encoded = data[key].as_str();
    let found = match encoded {
        None => Err(Arc::from(format!(
            "it has no key {key:?}: add it, or mend spec.tokenSecretRef.key"
        ))),
        Some(encoded) => decode(encoded).map_err(|reason| Arc::from(format!("data.{key}: {reason}"))),
    };
    if let Some(values) = data.as_object_mut() {
        for value in values.values_mut() {
            if let serde_json::Value::String(text) = value {
                text.zeroize();
            }
        }
    }
    found
}

fn decode(encoded: &str) -> Result<BearerToken, String> {
    let bytes = STANDARD
        .decode(encoded)
        .map_err(|_| "it isn't base64, as Secrets have it".to_owned())?;
    let bytes = SecretSlice::from(bytes);
    let text = std::str::from_utf8(bytes.expose_secret()).map_err(|_| "it isn't text".to_owned())?;
    BearerToken::parse(text.trim_end_matches(['\r', '\n'])).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn secret() -> ObjectKey {
        ObjectKey {
            namespace: "a".into(),
            name: "token".into(),
        }
    }

    fn read(data: &Value) -> Token {
        let object = json!({"metadata": {"name": "token", "namespace": "a"}, "data": data});
        token(serde_json::from_value(object).unwrap(), "token")
    }

    #[test]
    fn a_token_is_read() {
        let expected = BearerToken::parse("abc.def").unwrap();
        assert_eq!(
            read(&json!({"token": STANDARD.encode("abc.def\n"), "other": "eA=="})),
            Ok(expected)
        );
    }

    #[rstest]
    #[case::no_data(Value::Null, "no key \"token\"")]
    #[case::another_key(json!({"password": "c2VjcmV0"}), "no key \"token\"")]
    #[case::not_base64(json!({"token": "very secret"}), "base64")]
    #[case::not_text(json!({"token": STANDARD.encode([0xff])}), "text")]
    #[case::empty(json!({"token": ""}), "empty")]
    #[case::no_token(json!({"token": STANDARD.encode("very secret")}), "byte 4")]
    fn what_holds_none_says_so_without_showing_it(#[case] data: Value, #[case] expected: &str) {
        let said = read(&data).unwrap_err();
        assert!(said.contains(expected), "{said}");
        assert!(!said.contains("secret"), "{said}");
    }

    #[test]
    fn the_last_token_stays_while_the_secret_cannot_be_asked_for_and_goes_with_it() {
        let token = BearerToken::parse("abc").unwrap();
        let mut seen = Seen {
            objects: Some(Arc::new(BTreeMap::from([(secret(), Ok(token.clone()))]))),
            failing: Some("connection refused".into()),
        };
        assert_eq!(judge(&seen, &secret()).unwrap(), token);
        seen.objects = Some(Arc::default());
        let said = judge(&seen, &secret()).unwrap_err().to_string();
        assert!(said.contains("a/token: there is no such Secret"), "{said}");
        seen.objects = None;
        let said = judge(&seen, &secret()).unwrap_err().to_string();
        assert!(said.contains("connection refused"), "{said}");
    }
}
