//! A certificate authority in memory: made, parsed, renewed, and issuing. Where it is kept is its owner's affair.

use std::{path::Path, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use rustls::{
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
    sign::CertifiedKey,
};
use secrecy::zeroize::Zeroizing;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{TrustError, names::ServedNames, pem, provider, serving::Serving};

const DAY: SignedDuration = SignedDuration::from_hours(24);
const CA_LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 3650);
/// Consumers have this long to take up the renewed certificate.
const CA_RENEW_BEFORE: SignedDuration = SignedDuration::from_hours(24 * 365);
const LEAF_LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 7);
const LEAF_RENEW_BEFORE: SignedDuration = SignedDuration::from_hours(24 * 3);
/// A certificate is good from a little before it was made, for clocks that are behind.
const BACKDATE: SignedDuration = SignedDuration::from_mins(10);

/// Begins the common name of every CA made here. One that doesn't have it is the operator's own, and theirs to renew.
const COMMON_NAME: &str = "understudy own-ca ";

/// A CA certificate and its key.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// The CA's own first; then whatever stands beside it, for consumers to trust as well.
    certificates: Vec<CertificateDer<'static>>,
    expiry: Timestamp,
    /// The common name, if it was made here.
    ours: Option<String>,
}

/// A CA as it is written to files.
pub(super) struct Written {
    pub(super) certificate: String,
    pub(super) key: Zeroizing<String>,
}

/// A certificate that was issued, and when the next is due.
pub(super) struct Issued {
    pub(super) serving: Serving,
    pub(super) renew_at: Timestamp,
}

impl Authority {
    /// A new CA. Its name is its own, so that two can stand in one bundle.
    pub(super) fn make(now: Timestamp) -> Result<Written, TrustError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let id = uuid::Uuid::new_v4().simple().to_string();
        let name = format!("{COMMON_NAME}{}", &id[..8]);
        Ok(Written {
            certificate: ca_params(&name, now).self_signed(&key)?.pem(),
            key: Zeroizing::new(key.serialize_pem()),
        })
    }

    /// Takes a CA's certificate and key from PEM; of several certificates the first counts. The places, a file's path
    /// or an object's name and key, are for errors to name.
    pub(super) fn parse(
        (certificate_path, certificate): (&Path, &[u8]),
        (key_path, key): (&Path, &[u8]),
    ) -> Result<Self, TrustError> {
        let certificates = pem::certificates(certificate, certificate_path)?;
        let certificate = &certificates[0];
        let bad = || TrustError::BadCertificate(certificate_path.to_owned());
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| bad())?;
        let signs = parsed
            .key_usage()
            .ok()
            .flatten()
            .is_none_or(|usage| usage.value.key_cert_sign());
        if !parsed.is_ca() || !signs {
            return Err(TrustError::NotACa(certificate_path.to_owned()));
        }
        let key = std::str::from_utf8(key).map_err(|_| TrustError::NoKey(key_path.to_owned()))?;
        // Says whether it's no key at all, or one that can't be used here.
        pem::private_key(key.as_bytes(), key_path)?;
        let key = KeyPair::from_pem(key).map_err(|_| TrustError::BadKey(key_path.to_owned()))?;
        if parsed.public_key().subject_public_key.as_ref() != key.public_key_raw() {
            return Err(TrustError::Mismatch {
                certificate: certificate_path.to_owned(),
                key: key_path.to_owned(),
            });
        }
        let name = parsed
            .subject()
            .iter_common_name()
            .next()
            .and_then(|name| name.as_str().ok());
        let ours = name.filter(|name| name.starts_with(COMMON_NAME)).map(str::to_owned);
        let expiry = pem::expiry(certificate, certificate_path)?;
        let issuer = Issuer::from_ca_cert_der(certificate, key).map_err(|_| bad())?;
        Ok(Self {
            issuer,
            certificates,
            expiry,
            ours,
        })
    }

    pub(super) fn expiry(&self) -> Timestamp {
        self.expiry
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.certificates == other.certificates
    }

    /// What consumers are to trust.
    pub(super) fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// Whether it should be renewed now, and can be here.
    pub(super) fn wants_renewal(&self, now: Timestamp) -> bool {
        self.ours.is_some() && now + CA_RENEW_BEFORE >= self.expiry
    }

    /// Its certificate for another term, under the same name and key: a leaf that it signed is good under the old
    /// certificate and under the new, so consumers may take their time.
    pub(super) fn renewed(&self, now: Timestamp) -> Result<String, TrustError> {
        let name = self.ours.as_deref().unwrap_or(COMMON_NAME);
        Ok(ca_params(name, now).self_signed(self.issuer.key())?.pem())
    }

    /// A serving certificate for `names`, with a key of its own that is nowhere but in memory.
    pub(super) fn issue(&self, names: &ServedNames, now: Timestamp) -> Result<Issued, TrustError> {
        let expiry = (now + LEAF_LIFETIME).min(self.expiry);
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name("kubernetes");
        set_validity(&mut params, now, expiry);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names = names.subject_alt_names()?;

        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let key = provider()
            .key_provider
            .load_private_key(PrivatePkcs8KeyDer::from(key.serialize_der()).into())?;
        let key = Arc::new(CertifiedKey::new(vec![certificate.der().clone()], key));
        // Under a CA that ends soon there is no third of a term to wait for: look again in a day.
        let renew_at = (expiry - LEAF_RENEW_BEFORE).max(now + DAY);
        Ok(Issued {
            serving: Serving { key, expiry },
            renew_at,
        })
    }
}

fn ca_params(name: &str, now: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, now, now + CA_LIFETIME);
    params
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// The time from `now - BACKDATE` to `expiry`, in rcgen's terms. (They are another crate's, not named here.)
pub(super) fn set_validity(params: &mut CertificateParams, now: Timestamp, expiry: Timestamp) {
    let since_epoch = |at: Timestamp| Duration::from_secs(at.as_second().try_into().unwrap_or(0));
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since_epoch(now - BACKDATE);
    params.not_after = epoch + since_epoch(expiry);
}
