//! Certificates as a CA makes them, tokens as an API server judges them, and whom a caller is taken for.

mod certificates;
mod proofs;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair,
};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    authorities::{Authorities, Bundle, parse},
    *,
};
use crate::cluster::mock::{Answer, Mock};

/// A CA and what it signs.
struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut params);
        Self {
            pem: params.self_signed(&key).unwrap().pem(),
            issuer: Issuer::new(params, key),
        }
    }

    fn authorities(&self) -> Arc<[authorities::Authority]> {
        parse("ca.crt", self.pem.as_bytes()).unwrap()
    }

    fn sign(&self, change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        params.signed_by(&key, &self.issuer).unwrap().der().clone()
    }

    fn client(&self, change: impl FnOnce(&mut CertificateParams)) -> Arc<Certificate> {
        Certificate::shown(Some(&[self.sign(change)])).unwrap()
    }
}

fn named(name: &'static str) -> impl FnOnce(&mut CertificateParams) {
    move |params| params.distinguished_name.push(DnType::CommonName, name)
}

/// A source of CAs that the test changes.
fn source(bundle: Bundle) -> (watch::Sender<Bundle>, Authorities) {
    let (publish, followed) = watch::channel(bundle);
    (publish, Authorities::union([followed]))
}

fn at(time: &str) -> Timestamp {
    time.parse().unwrap()
}

const NOW: &str = "2026-06-01T00:00:00Z";
