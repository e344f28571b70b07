//! What is asked of the signer, and whether what comes back is that.

use std::{collections::BTreeSet, net::IpAddr, path::Path, sync::Arc};

use jiff::Timestamp;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use rustls::{pki_types::PrivatePkcs8KeyDer, sign::CertifiedKey};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::KUBELET_SERVING;
use crate::trust::{TrustError, names::ServedNames, pem, provider};

/// A key, and the request for a certificate for it.
pub(super) struct Drawn {
    key: KeyPair,
    /// PKCS #10, as PEM.
    pub(super) pem: String,
}

/// A certificate that can be served.
pub(super) struct Signed {
    pub(super) key: Arc<CertifiedKey>,
    pub(super) expiry: Timestamp,
}

impl Drawn {
    /// In the node's name where the signer asks for that, and otherwise in that of the API server.
    pub(super) fn new(node_name: &str, signer: &str, names: &ServedNames) -> Result<Self, TrustError> {
        let mut subject = DistinguishedName::new();
        if signer == KUBELET_SERVING {
            subject.push(DnType::OrganizationName, "system:nodes");
            subject.push(DnType::CommonName, format!("system:node:{node_name}"));
        } else {
            subject.push(DnType::CommonName, "kubernetes");
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = subject;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = names.subject_alt_names()?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let pem = params.serialize_request(&key)?.pem()?;
        Ok(Self { key, pem })
    }

    /// Takes the certificate, and those between it and its CA, if it is what was asked for.
    pub(super) fn accept(
        self,
        chain: &[u8],
        names: &ServedNames,
        now: Timestamp,
        unfit: impl Fn(String) -> TrustError,
    ) -> Result<Signed, TrustError> {
        // The place isn't seen: what is wrong becomes what `unfit` says.
        let chain =
            pem::certificates(chain, Path::new("the certificate")).map_err(|_| unfit("cannot be parsed".to_owned()))?;
        let leaf = chain.first().cloned().unwrap_or_else(|| Vec::new().into());
        let (_, leaf) = X509Certificate::from_der(&leaf).map_err(|_| unfit("cannot be parsed".to_owned()))?;
        if leaf.public_key().subject_public_key.as_ref() != self.key.public_key_raw() {
            return Err(unfit("is for another key".to_owned()));
        }
        let time = |at: i64| Timestamp::from_second(at).map_err(|_| unfit("has a time beyond all bounds".to_owned()));
        let (begin, expiry) = (
            time(leaf.validity().not_before.timestamp())?,
            time(leaf.validity().not_after.timestamp())?,
        );
        if now < begin || expiry <= now {
            return Err(unfit(format!(
                "is good from {begin} to {expiry} and not now, at {now} by this node's clock"
            )));
        }
        let for_servers = leaf
            .extended_key_usage()
            .map_err(|_| unfit("cannot be parsed".to_owned()))?
            .is_none_or(|usage| usage.value.server_auth || usage.value.any);
        if !for_servers {
            return Err(unfit("is not for servers".to_owned()));
        }
        let lacking = lacking(&leaf, names);
        if !lacking.is_empty() {
            return Err(unfit(format!("does not name {}", lacking.join(", "))));
        }

        let key = provider()
            .key_provider
            .load_private_key(PrivatePkcs8KeyDer::from(self.key.serialize_der()).into())?;
        Ok(Signed {
            key: Arc::new(CertifiedKey::new(chain, key)),
            expiry,
        })
    }
}

/// Of the names that were asked for, those that the certificate hasn't.
fn lacking(leaf: &X509Certificate<'_>, names: &ServedNames) -> Vec<String> {
    let mut dns_names = names.all_dns_names();
    let mut addresses: BTreeSet<IpAddr> = names.all_addresses();
    let subject = leaf.subject_alternative_name().ok().flatten();
    for name in subject.iter().flat_map(|subject| &subject.value.general_names) {
        match name {
            GeneralName::DNSName(name) => {
                dns_names.remove(name);
            }
            GeneralName::IPAddress(octets) => {
                let address = <[u8; 4]>::try_from(*octets)
                    .map(IpAddr::from)
                    .or_else(|_| <[u8; 16]>::try_from(*octets).map(IpAddr::from));
                if let Ok(address) = address {
                    addresses.remove(&address);
                }
            }
            _ => {}
        }
    }
    let dns_names = dns_names.into_iter().map(str::to_owned);
    dns_names.chain(addresses.iter().map(IpAddr::to_string)).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateSigningRequestParams, IsCa, Issuer, SanType, date_time_ymd};
    use rstest::rstest;

    use super::*;

    /// What a signer makes of a request.
    fn sign(pem: &str, change: impl FnOnce(&mut CertificateParams)) -> String {
        let key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = Issuer::new(ca, key);
        let mut request = CertificateSigningRequestParams::from_pem(pem).unwrap();
        request.params.not_before = date_time_ymd(2026, 1, 1);
        request.params.not_after = date_time_ymd(2027, 1, 1);
        change(&mut request.params);
        request.signed_by(&issuer).unwrap().pem()
    }

    fn names() -> ServedNames {
        ServedNames {
            addresses: ["10.96.0.1", "fd00::1"].map(|address| address.parse().unwrap()).into(),
            dns_names: ["kubernetes.default.svc.example.org".to_owned()].into(),
        }
    }

    fn accept(drawn: Drawn, chain: &str) -> Result<Signed, String> {
        let now = "2026-06-01T00:00:00Z".parse().unwrap();
        let unfit = |flaw| TrustError::Unfit {
            request: "r".to_owned(),
            signer: "s".to_owned(),
            flaw,
        };
        drawn
            .accept(chain.as_bytes(), &names(), now, unfit)
            .map_err(|error| error.to_string())
    }

    #[rstest]
    #[case::as_asked(|_: &mut CertificateParams| (), None)]
    #[case::over(|params: &mut CertificateParams| params.not_after = date_time_ymd(2026, 5, 1), Some("to 2026-05-01"))]
    #[case::to_come(|params: &mut CertificateParams| params.not_before = date_time_ymd(2026, 7, 1), Some("from 2026-07-01"))]
    #[case::for_clients(
        |params: &mut CertificateParams| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
        Some("not for servers")
    )]
    #[case::fewer_names(
        |params: &mut CertificateParams| params.subject_alt_names.retain(|name| matches!(name, SanType::DnsName(_))),
        Some("does not name 10.96.0.1, fd00::1")
    )]
    #[case::no_names(|params: &mut CertificateParams| params.subject_alt_names.clear(), Some("kubernetes.default.svc.example.org"))]
    fn takes_what_was_asked_for(#[case] change: fn(&mut CertificateParams), #[case] flaw: Option<&str>) {
        let drawn = Drawn::new("n1", KUBELET_SERVING, &names()).unwrap();
        let chain = sign(&drawn.pem, change);
        match (accept(drawn, &chain), flaw) {
            (Ok(signed), None) => assert_eq!(signed.expiry.to_string(), "2027-01-01T00:00:00Z"),
            (Err(error), Some(flaw)) => assert!(error.contains(flaw), "{error}"),
            (Ok(_), Some(flaw)) => panic!("taken, though it {flaw}"),
            (Err(error), None) => panic!("{error}"),
        }
    }

    #[rstest]
    #[case::nothing("", "cannot be parsed")]
    #[case::garbage("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cannot be parsed")]
    fn refuses_what_is_no_certificate(#[case] chain: &str, #[case] flaw: &str) {
        let drawn = Drawn::new("n1", KUBELET_SERVING, &names()).unwrap();
        let error = accept(drawn, chain).err().unwrap();
        assert!(error.contains(flaw), "{error}");
    }

    #[test]
    fn refuses_another_keys_certificate() {
        let (ours, other) = (
            Drawn::new("n1", KUBELET_SERVING, &names()).unwrap(),
            Drawn::new("n1", KUBELET_SERVING, &names()).unwrap(),
        );
        let error = accept(ours, &sign(&other.pem, |_| ())).err().unwrap();
        assert!(error.contains("another key"), "{error}");
    }

    #[rstest]
    #[case(KUBELET_SERVING, "O=system:nodes, CN=system:node:n1")]
    #[case("example.org/ours", "CN=kubernetes")]
    fn is_drawn_in_the_name_that_the_signer_asks_for(#[case] signer: &str, #[case] subject: &str) {
        let drawn = Drawn::new("n1", signer, &names()).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(drawn.pem.as_bytes()).unwrap();
        let (_, request) =
            x509_parser::certification_request::X509CertificationRequest::from_der(&pem.contents).unwrap();
        assert_eq!(request.certification_request_info.subject.to_string(), subject);
    }
}
