//! Client certificates, by the rules of kube-apiserver's x509 authenticator: TLS asks for one and takes whatever comes
//! with its key; each request judges it anew by the CAs in force now.

use std::{fmt::Write as _, sync::Arc};

use aws_lc_rs::digest;
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime, pem::PemObject},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use x509_parser::{asn1_rs::Oid, certificate::X509Certificate, der_parser::oid, prelude::FromDer};

use super::auth::UserInfo;

/// The extra that names the credential.
pub(crate) const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";
/// The part of a subject that is the user's UID.
const UID: Oid<'static> = oid!(1.3.6.1.4.1.57683.2);
const COMMON_NAME: Oid<'static> = oid!(2.5.4.3);
const ORGANIZATION: Oid<'static> = oid!(2.5.4.10);

/// Why a client certificate is nobody's.
#[derive(Debug, thiserror::Error, PartialEq)]
pub(crate) enum CertificateError {
    /// No CA in force vouches for it, now, as a client's.
    #[error("the client certificate isn't good: {0}")]
    Chain(rustls::Error),
    /// It can't be read.
    #[error("the client certificate can't be read")]
    Form,
    /// Its UID is empty, or there are several.
    #[error("the client certificate's subject has an empty UID, or more than one")]
    Uid,
}

/// The CAs whose clients are believed.
#[derive(Debug)]
pub(crate) struct ClientCas {
    /// As it was read.
    pub(crate) pem: String,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl std::str::FromStr for ClientCas {
    type Err = String;

    fn from_str(pem: &str) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|error| error.to_string())?;
            roots.add(certificate).map_err(|error| error.to_string())?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self {
            pem: pem.to_owned(),
            verifier,
        })
    }
}

impl ClientCas {
    /// What asks for a certificate in a handshake, with these CAs as a hint, and leaves its chain to each request.
    pub(crate) fn asking(self: &Arc<Self>) -> Arc<dyn ClientCertVerifier> {
        Arc::new(Asking(self.clone()))
    }

    /// Whose certificate it is; `None` where its subject has no common name.
    ///
    /// # Errors
    /// It is nobody's.
    pub(crate) fn user(&self, chain: &[CertificateDer<'_>]) -> Result<Option<UserInfo>, CertificateError> {
        let Some((own, intermediates)) = chain.split_first() else {
            return Ok(None);
        };
        self.verifier
            .verify_client_cert(own, intermediates, UnixTime::now())
            .map_err(CertificateError::Chain)?;
        subject(own)
    }
}

fn subject(der: &CertificateDer<'_>) -> Result<Option<UserInfo>, CertificateError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| CertificateError::Form)?;
    let mut user = UserInfo::default();
    let mut uids = Vec::new();
    for attribute in certificate.subject().iter_attributes() {
        let text = || {
            let text = attribute.as_str().map_err(|_| CertificateError::Form)?;
            Ok(text.to_owned())
        };
        match attribute.attr_type() {
            kind if *kind == COMMON_NAME => user.username = text()?,
            kind if *kind == ORGANIZATION => user.groups.push(text()?),
            kind if *kind == UID => uids.push(text()?),
            _ => {}
        }
    }
    user.uid = match &uids[..] {
        [] => String::new(),
        [uid] if !uid.is_empty() => uid.clone(),
        _ => return Err(CertificateError::Uid),
    };
    let fingerprint = digest::digest(&digest::SHA256, der);
    let mut id = "X509SHA256=".to_owned();
    for byte in fingerprint.as_ref() {
        // Writing to a String cannot fail.
        let _ = write!(id, "{byte:02x}");
    }
    user.extra.insert(CREDENTIAL_ID.to_owned(), vec![id]);
    Ok((!user.username.is_empty()).then_some(user))
}

/// Takes any certificate whose key the client has.
#[derive(Debug)]
struct Asking(Arc<ClientCas>);

impl ClientCertVerifier for Asking {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.verifier.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::node::{CertificateAuthority, Client};

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    #[test]
    fn the_subject_is_the_user() {
        let authority = CertificateAuthority::new("clients").unwrap();
        let cas: ClientCas = authority.certificate().parse().unwrap();
        let client = Client::new("alice").group("dev").group("ops").uid("u-1");
        let identity = authority.client_identity(&client).unwrap();
        let user = cas.user(&[der(&identity.certificate)]).unwrap().unwrap();
        assert_eq!((user.username.as_str(), user.uid.as_str()), ("alice", "u-1"));
        assert_eq!(user.groups, ["dev", "ops"]);
        let id = &user.extra[CREDENTIAL_ID][0];
        assert!(id.starts_with("X509SHA256=") && id.len() == 11 + 64, "{id}");
    }

    #[rstest]
    #[case::server(Client::new("alice").for_servers())]
    #[case::past(Client::new("alice").expired())]
    fn what_no_ca_vouches_for_is_nobodys(#[case] client: Client) {
        let authority = CertificateAuthority::new("clients").unwrap();
        let cas: ClientCas = authority.certificate().parse().unwrap();
        let identity = authority.client_identity(&client).unwrap();
        let error = cas.user(&[der(&identity.certificate)]).unwrap_err();
        assert!(matches!(error, CertificateError::Chain(_)), "{error}");
    }

    #[test]
    fn another_ca_of_the_same_name_is_not_believed() {
        let cas: ClientCas = CertificateAuthority::new("clients")
            .unwrap()
            .certificate()
            .parse()
            .unwrap();
        let other = CertificateAuthority::new("clients").unwrap();
        let identity = other.client_identity(&Client::new("alice")).unwrap();
        assert!(cas.user(&[der(&identity.certificate)]).is_err());
    }

    #[test]
    fn a_subject_without_a_name_is_nobody_and_an_empty_uid_is_refused() {
        let authority = CertificateAuthority::new("clients").unwrap();
        let cas: ClientCas = authority.certificate().parse().unwrap();
        let nameless = authority.client_identity(&Client::new("").group("dev")).unwrap();
        assert_eq!(cas.user(&[der(&nameless.certificate)]), Ok(None));
        let empty = authority.client_identity(&Client::new("alice").uid("")).unwrap();
        assert_eq!(cas.user(&[der(&empty.certificate)]), Err(CertificateError::Uid));
    }
}
