//! Who a client certificate says its holder is, as kube-apiserver reads it (`k8s.io/apiserver/pkg/authentication/request/x509`):
//! the subject's common name is the user, its organizations are the groups.
//!
//! That the client holds the certificate's key was proved in the handshake, maybe of an earlier connection that this one
//! resumes. Whether the certificate is good is judged for each request, by the CAs in force then: one that is taken
//! back, or has expired, is good no longer, whatever connection it came on.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::UserInfo;
use rustls::pki_types::{CertificateDer, UnixTime};
use sha2::{Digest as _, Sha256};
use x509_parser::{
    oid_registry::{OID_X509_COMMON_NAME, OID_X509_ORGANIZATION_NAME, Oid, asn1_rs::oid},
    prelude::{FromDer as _, X509Certificate},
};

use super::authorities::{Authority, InForce};
use crate::identity::{ANONYMOUS, AUTHENTICATED};

/// `k8s.io/kubernetes/pkg/apis/certificates`, `UIDOID`: honoured since Kubernetes 1.34.
const UID: Oid<'static> = oid!(1.3.6.1.4.1.57683.2);
/// `k8s.io/apiserver/pkg/authentication/user`, `CredentialIDKey`.
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Why a certificate proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// The cluster's own client CA hasn't been read yet, so that nobody can be turned away.
    #[error("the cluster's client CA can't be read yet: see that the agent may watch it")]
    AuthoritiesUnknown,
    /// No CA in force vouches for it.
    #[error("no CA in force vouches for it: {0}")]
    NotVouchedFor(String),
    /// It can't be parsed.
    #[error("it can't be parsed")]
    Malformed,
    /// A part of the subject that matters isn't text.
    #[error("its subject's {0} can't be read as text")]
    Unreadable(&'static str),
    /// There has to be one UID, and it has to say something.
    #[error("its subject has more than one UID, or an empty one")]
    Uid,
}

/// The certificate that a client showed on its connection, and those it sent along.
#[derive(Debug)]
pub struct Certificate {
    chain: Vec<CertificateDer<'static>>,
    last: Mutex<Option<Judged>>,
}

/// What was found last, and what it holds under.
#[derive(Debug)]
struct Judged {
    authorities: InForce,
    valid: Validity,
    user: Option<Arc<UserInfo>>,
}

/// From when until when, both inclusive, in seconds since 1970.
#[derive(Debug, Clone, Copy)]
pub(super) struct Validity {
    pub(super) from: i64,
    pub(super) until: i64,
}

impl Validity {
    pub(super) fn of(certificate: &X509Certificate<'_>) -> Self {
        let validity = certificate.validity();
        Self {
            from: validity.not_before.timestamp(),
            until: validity.not_after.timestamp(),
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            from: self.from.max(other.from),
            until: self.until.min(other.until),
        }
    }

    /// To the second, as certificates have it.
    pub(super) fn holds(self, now: Timestamp) -> bool {
        (self.from..=self.until).contains(&now.as_second())
    }
}

impl Certificate {
    /// What a client showed; `None` for nothing.
    #[must_use]
    pub fn shown(chain: Option<&[CertificateDer<'static>]>) -> Option<Arc<Self>> {
        let chain = chain.filter(|chain| !chain.is_empty())?.to_vec();
        let last = Mutex::default();
        Some(Arc::new(Self { chain, last }))
    }

    /// Who its holder is; `None` if it names nobody, or if there is no CA at all to judge it by.
    ///
    /// # Errors
    /// If it isn't good now, or that can't be known.
    pub fn user(&self, authorities: &InForce, now: Timestamp) -> Result<Option<Arc<UserInfo>>, CertificateError> {
        if let Some(last) = &*self.last.lock().unwrap_or_else(PoisonError::into_inner)
            && last.authorities.same(authorities)
            && last.valid.holds(now)
        {
            return Ok(last.user.clone());
        }
        if authorities.is_none() {
            return Ok(None);
        }
        let valid = self.vouched_for(authorities, now)?;
        let user = user(&self.chain[0])?.map(Arc::new);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Judged {
            authorities: authorities.clone(),
            valid,
            user: user.clone(),
        });
        Ok(user)
    }

    /// For how long the CA that vouches for it does so.
    fn vouched_for(&self, authorities: &InForce, now: Timestamp) -> Result<Validity, CertificateError> {
        let seconds = u64::try_from(now.as_second()).unwrap_or_default();
        let at = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let mut why = "there is none".to_owned();
        for authority in authorities.all().filter(|authority| authority.valid.holds(now)) {
            match authority
                .verifier
                .verify_client_cert(&self.chain[0], &self.chain[1..], at)
            {
                Ok(_) => return self.valid_with(authority),
                Err(error) => why = error.to_string(),
            }
        }
        if authorities.is_incomplete() {
            return Err(CertificateError::AuthoritiesUnknown);
        }
        Err(CertificateError::NotVouchedFor(why))
    }

    /// As long as all of the certificates sent hold: which of them were needed isn't told.
    fn valid_with(&self, authority: &Authority) -> Result<Validity, CertificateError> {
        self.chain.iter().try_fold(authority.valid, |valid, certificate| {
            let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::Malformed)?;
            Ok(valid.and(Validity::of(&parsed)))
        })
    }
}

/// The user that a certificate names, if any.
pub(crate) fn user(certificate: &CertificateDer<'_>) -> Result<Option<UserInfo>, CertificateError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::Malformed)?;
    let mut name = String::new();
    let mut groups = Vec::new();
    let mut uids = Vec::new();
    for attribute in parsed.subject().iter_attributes() {
        let text = |what| {
            attribute
                .as_str()
                .map(str::to_owned)
                .map_err(|_| CertificateError::Unreadable(what))
        };
        if *attribute.attr_type() == OID_X509_COMMON_NAME {
            // Of several the last counts.
            name = text("common name")?;
        } else if *attribute.attr_type() == OID_X509_ORGANIZATION_NAME {
            groups.push(text("organization")?);
        } else if *attribute.attr_type() == UID {
            uids.push(text("UID")?);
        }
    }
    if name.is_empty() {
        return Ok(None);
    }
    let uid = match uids.as_slice() {
        [] => None,
        [uid] if !uid.is_empty() => Some(uid.clone()),
        _ => return Err(CertificateError::Uid),
    };
    add_authenticated(&name, &mut groups);
    Ok(Some(UserInfo {
        username: Some(name),
        groups: Some(groups),
        uid,
        extra: Some(BTreeMap::from([(
            CREDENTIAL_ID.to_owned(),
            vec![credential_id(certificate)],
        )])),
    }))
}

/// `k8s.io/apiserver/pkg/authentication/group`, `AuthenticatedGroupAdder`.
fn add_authenticated(name: &str, groups: &mut Vec<String>) {
    let has_one = groups
        .iter()
        .any(|group| group == AUTHENTICATED || group == "system:unauthenticated");
    if name != ANONYMOUS && !has_one {
        groups.push(AUTHENTICATED.to_owned());
    }
}

fn credential_id(certificate: &CertificateDer<'_>) -> String {
    let mut id = "X509SHA256=".to_owned();
    for byte in Sha256::digest(certificate) {
        // Writing to a String doesn't fail.
        let _ = write!(id, "{byte:02x}");
    }
    id
}
