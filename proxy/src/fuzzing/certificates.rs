//! What a client's certificate says of its holder, in DER.

use std::collections::BTreeMap;

use rustls::pki_types::CertificateDer;

use super::heads::Impersonated;
use crate::{caller::x509, identity::ActsAs};

/// Whatever stands in a certificate: it names somebody who can be carried upstream exactly, or nobody.
pub(super) fn holds(bytes: &[u8]) {
    let Ok(Some(user)) = x509::user(&CertificateDer::from(bytes)) else {
        return;
    };
    let name = user.username.clone().unwrap_or_default();
    assert!(!name.is_empty(), "a certificate of nobody proves somebody");
    let Ok(acts_as) = ActsAs::caller(&user) else { return };
    assert_eq!(acts_as.name(), name);
    let expected = Impersonated {
        user: vec![name],
        groups: user.groups.unwrap_or_default(),
        uid: user.uid.into_iter().collect(),
        extra: user.extra.unwrap_or_else(BTreeMap::new),
        unknown: Vec::new(),
    };
    let headers = acts_as.lines().iter().cloned().collect();
    assert_eq!(Impersonated::read(&headers), expected);
}
