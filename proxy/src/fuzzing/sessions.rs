//! Sessions as they are written: files in YAML, resources in JSON.

use std::path::Path;

use jiff::Timestamp;
use serde_json::Value;

use crate::sessions::{
    files::{self, FileError},
    resource::SessionResourceSpec,
    spec::{AuthMethod, Policy, SessionSpec, SpecError, TokenSource},
};

/// Stands in seeds where a token would, and in messages nowhere.
const CANARY: &str = "very-secret-token-of-some-length-as-they-are";

/// A file is read or refused, the same way each time, and its tokens are told to nobody.
pub(super) fn file(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let read = |policy| files::parse(Path::new("a.yaml"), text, policy);
    let (first, again) = (read(STRICT), read(STRICT));
    assert_eq!(format!("{first:?}"), format!("{again:?}"));
    for declared in read(LENIENT).into_iter().flatten() {
        match declared.spec {
            Ok(spec) => tells_no_token(text, &spec),
            Err(error) => quotes_no_value(&error),
        }
    }
    match first {
        Err(error @ FileError::Parse { .. }) => {
            let said = format!("{error} {error:?}");
            assert!(!said.contains(CANARY), "{said}");
        }
        Err(_) => {}
        // What the strict refuse, the lenient may take, and never the other way about.
        Ok(declared) => {
            let lenient = read(LENIENT).unwrap_or_default();
            assert_eq!(declared.len(), lenient.len());
            for (strict, lenient) in declared.iter().zip(&lenient) {
                assert!(strict.spec.is_err() || strict.spec.as_ref().ok() == lenient.spec.as_ref().ok());
            }
        }
    }
}

/// A resource's `spec` is read or refused, names nothing on a node, and means the same after a way through the types of
/// the custom resource.
pub(super) fn resource(bytes: &[u8]) {
    let Ok(written) = serde_json::from_slice::<Value>(bytes) else {
        return;
    };
    let read = |written| SessionSpec::of_resource(written, Some(Timestamp::UNIX_EPOCH), LENIENT);
    let spec = match read(written.clone()) {
        Ok(spec) => spec,
        Err(error) => return quotes_no_value(&error),
    };
    if let AuthMethod::ServiceAccountToken(source, _) = &spec.method {
        assert!(
            matches!(source, TokenSource::Secret { .. }),
            "a resource names a file, or holds a token"
        );
    }
    let Ok(typed) = serde_json::from_value::<SessionResourceSpec>(written) else {
        return;
    };
    let Ok(again) = serde_json::to_value(typed) else {
        panic!("what was read can't be written");
    };
    match read(again) {
        Ok(again) => assert_eq!(to_the_second(spec), to_the_second(again)),
        Err(error) => panic!("written again, it is refused: {error}"),
    }
}

/// Times of the API are.
fn to_the_second(mut spec: SessionSpec) -> SessionSpec {
    spec.expires_at = spec
        .expires_at
        .and_then(|at| Timestamp::from_second(at.as_millisecond().div_euclid(1000)).ok());
    spec
}

const STRICT: Policy = Policy {
    allow_insecure_servers: false,
};
const LENIENT: Policy = Policy {
    allow_insecure_servers: true,
};

fn tells_no_token(text: &str, spec: &SessionSpec) {
    if text.matches(CANARY).count() != 1 {
        return;
    }
    if let AuthMethod::ServiceAccountToken(TokenSource::Inline(token), _) = &spec.method
        && token.header_value().as_bytes().ends_with(CANARY.as_bytes())
    {
        let said = format!("{spec:?}");
        assert!(!said.contains(CANARY), "{said}");
    }
}

/// Parsers' messages, that is; ours quote names.
fn quotes_no_value(error: &SpecError) {
    if let SpecError::Shape(_) | SpecError::Time(_) | SpecError::Token(_) | SpecError::CaBundle(_) = error {
        let said = format!("{error} {error:?}");
        assert!(!said.contains(CANARY), "{said}");
    }
}
