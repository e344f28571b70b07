//! The box's certificate authorities, as PEM: made anew for each box, good for a day. They sign for servers, and for
//! clients who prove themselves by certificate.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

use super::network::API_SERVER;

/// The kinds of a subject's parts that rcgen has no name for, or only one.
const ORGANIZATION: [u64; 4] = [2, 5, 4, 10];
const UID: [u64; 8] = [1, 3, 6, 1, 4, 1, 57683, 2];

/// A CA that signs serving certificates.
#[derive(Debug)]
pub struct CertificateAuthority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// Who a client's certificate is for, and what for.
#[derive(Debug, Clone)]
pub struct Client {
    name: String,
    groups: Vec<String>,
    uid: Option<String>,
    usage: ExtendedKeyUsagePurpose,
    expired: bool,
}

impl Client {
    /// A user of that name, which is the subject's common name; empty for a subject without one.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            groups: Vec::new(),
            uid: None,
            usage: ExtendedKeyUsagePurpose::ClientAuth,
            expired: false,
        }
    }

    /// In one more group; two at most.
    #[must_use]
    pub fn group(mut self, group: &str) -> Self {
        self.groups.push(group.to_owned());
        self
    }

    /// With that UID.
    #[must_use]
    pub fn uid(mut self, uid: &str) -> Self {
        self.uid = Some(uid.to_owned());
        self
    }

    /// A certificate that proves a server, which no client may use.
    #[must_use]
    pub fn for_servers(mut self) -> Self {
        self.usage = ExtendedKeyUsagePurpose::ServerAuth;
        self
    }

    /// A certificate whose time is over.
    #[must_use]
    pub fn expired(mut self) -> Self {
        self.expired = true;
        self
    }
}

/// A certificate and its key.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate, PEM.
    pub certificate: String,
    /// Its private key, PEM.
    pub key: String,
}

impl CertificateAuthority {
    /// A new CA called `name`.
    ///
    /// # Errors
    /// The key couldn't be made.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        Ok(Self { issuer })
    }

    /// Its own certificate, PEM.
    #[must_use]
    pub fn certificate(&self) -> String {
        self.issuer.as_ref().pem()
    }

    /// Its own key, PEM, for the cluster's signer.
    pub(crate) fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A serving certificate for every name and address of the API server.
    ///
    /// # Errors
    /// The key couldn't be made.
    pub fn api_server_identity(&self) -> Result<Identity> {
        let names = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
            "127.0.0.1",
            "::1",
        ];
        let addresses = API_SERVER.iter().map(|address| address.ip().to_string());
        self.identity(names.into_iter().map(str::to_owned).chain(addresses).collect())
    }

    /// A client's certificate.
    ///
    /// # Errors
    /// The key couldn't be made, or there are more than two groups.
    pub fn client_identity(&self, client: &Client) -> Result<Identity> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let subject = &mut params.distinguished_name;
        // rcgen keeps one value for each kind of name. The second group's kind is the same one, said otherwise.
        let kinds = [DnType::OrganizationName, DnType::CustomDnType(ORGANIZATION.to_vec())];
        ensure!(
            client.groups.len() <= kinds.len(),
            "a certificate made here has two groups at most"
        );
        for (kind, group) in kinds.into_iter().zip(&client.groups) {
            subject.push(kind, group.as_str());
        }
        if let Some(uid) = &client.uid {
            subject.push(DnType::CustomDnType(UID.to_vec()), uid.as_str());
        }
        if !client.name.is_empty() {
            subject.push(DnType::CommonName, client.name.as_str());
        }
        params.extended_key_usages = vec![client.usage.clone()];
        params.use_authority_key_identifier_extension = true;
        if client.expired {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2020, 1, 2);
        }
        self.sign(&params)
    }

    fn identity(&self, names: Vec<String>) -> Result<Identity> {
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

impl Identity {
    /// Writes `tls.crt` and `tls.key` into `directory`.
    ///
    /// # Errors
    /// The directory can't be written.
    pub fn write(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        fs::write(directory.join("tls.crt"), &self.certificate)?;
        fs::write(directory.join("tls.key"), &self.key)?;
        Ok(())
    }
}
