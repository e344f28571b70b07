//! Keys of recordings, wrapped for whoever may read them: the files of [age](https://age-encryption.org/v1) for X25519
//! recipients, so that an operator makes and keeps identities with age's own tools. What is in them is short; recordings
//! themselves are sealed frame by frame (`cast/seal.rs`), for age holds back up to 64 KiB before it writes.
//!
//! The cryptography is aws-lc-rs's, as all of the agent's is.

use std::{
    fmt::{self, Write as _},
    fs, io,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use aws_lc_rs::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey},
    agreement::{PrivateKey, UnparsedPublicKey, X25519, agree},
    error::Unspecified,
    hkdf::{HKDF_SHA256, Salt},
    hmac, rand,
};
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use bech32::{Bech32, Hrp, primitives::decode::CheckedHrpstring};
use secrecy::{ExposeSecret as _, SecretBox, SecretString};

const VERSION: &str = "age-encryption.org/v1\n";
const X25519_INFO: &[u8] = b"age-encryption.org/v1/X25519";
const RECIPIENT: &str = "age";
const IDENTITY: &str = "age-secret-key-";
/// The length of keys, of public ones and of sums.
const LENGTH: usize = 32;
/// Of the key that age wraps for each recipient.
const FILE_KEY: usize = 16;
const PAYLOAD_NONCE: usize = 16;
/// Of a payload of one chunk: no chunk before it, and it is the last.
const ONLY_CHUNK: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// A recipient more takes two lines.
const LONGEST: usize = 64 * 1024;

/// A key to seal a recording with.
pub type Key = SecretBox<[u8; LENGTH]>;

/// Why a key can't be wrapped or had.
#[derive(Debug, thiserror::Error)]
pub enum AgeError {
    /// It isn't the public key of anybody.
    #[error("this isn't a recipient of age's: one is age1 and 58 more characters, as age-keygen prints it")]
    Recipient,
    /// A file with identities can't be read.
    #[error("the identities in {file} can't be read ({source}): see that it is there, and that you may read it")]
    Read {
        /// The file.
        file: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// It has none, or something else.
    #[error(
        "{0} has a line that is no identity, or none that is: one is AGE-SECRET-KEY-1 and more, as age-keygen writes it"
    )]
    Identity(PathBuf),
    /// It was wrapped for others, or was changed.
    #[error("it was sealed for others: give the --identity of one of its recipients")]
    NotFor,
    /// The wrapped key isn't one.
    #[error("its wrapped key isn't what age writes")]
    Malformed,
    /// The cryptography failed, as it does without memory or randomness.
    #[error("a key can't be made")]
    Crypto,
}

impl From<Unspecified> for AgeError {
    fn from(_: Unspecified) -> Self {
        Self::Crypto
    }
}

/// Whom a recording is sealed for: `age1...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient([u8; LENGTH]);

impl FromStr for Recipient {
    type Err = AgeError;

    fn from_str(text: &str) -> Result<Self, AgeError> {
        let key = decode(RECIPIENT, text).ok_or(AgeError::Recipient)?;
        Ok(Self(*key.expose_secret()))
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = Hrp::parse(RECIPIENT)
            .ok()
            .and_then(|hrp| bech32::encode::<Bech32>(hrp, &self.0).ok());
        formatter.write_str(&text.unwrap_or_default())
    }
}

/// Who may read what was sealed: `AGE-SECRET-KEY-1...`.
#[derive(Clone)]
pub struct Identity {
    secret: Arc<PrivateKey>,
    public: [u8; LENGTH],
}

impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Identity").finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads those in a file, as `age-keygen` writes it: one a line, beside comments.
    ///
    /// # Errors
    /// If it can't be read, or has anything else.
    pub fn read(file: &Path) -> Result<Vec<Self>, AgeError> {
        let text = fs::read_to_string(file).map(SecretString::from);
        let text = text.map_err(|source| AgeError::Read {
            file: file.to_owned(),
            source,
        })?;
        let lines = text.expose_secret().lines().map(str::trim);
        let identities: Option<Vec<_>> = lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(Self::parse)
            .collect();
        identities
            .filter(|identities| !identities.is_empty())
            .ok_or_else(|| AgeError::Identity(file.to_owned()))
    }

    fn parse(text: &str) -> Option<Self> {
        let secret = decode(IDENTITY, text)?;
        let secret = PrivateKey::from_private_key(&X25519, secret.expose_secret()).ok()?;
        let public = secret.compute_public_key().ok()?;
        Some(Self {
            public: public.as_ref().try_into().ok()?,
            secret: Arc::new(secret),
        })
    }
}

/// Thirty-two bytes in Bech32, of one kind.
fn decode(kind: &str, text: &str) -> Option<Key> {
    // Its checksum is the older form's.
    let checked = CheckedHrpstring::new::<Bech32>(text).ok()?;
    let bytes: Box<[u8]> = checked.byte_iter().collect();
    let bytes = SecretBox::new(bytes);
    let key: [u8; LENGTH] = bytes.expose_secret().try_into().ok()?;
    (checked.hrp() == Hrp::parse(kind).ok()?).then(|| SecretBox::new(Box::new(key)))
}

/// A new key, and an age file with it that each of the recipients can read.
///
/// # Errors
/// If it can't be made.
pub fn new_key(recipients: &[Recipient]) -> Result<(Key, Vec<u8>), AgeError> {
    let key = random::<LENGTH>()?;
    let file_key = random::<FILE_KEY>()?;
    let mut file = VERSION.to_owned();
    for recipient in recipients {
        let ephemeral = PrivateKey::generate(&X25519)?;
        let share = ephemeral.compute_public_key()?;
        let wrap = wrap_key(&ephemeral, &recipient.0, share.as_ref(), &recipient.0)?;
        let mut body = file_key.expose_secret().to_vec();
        seal(&wrap, [0; 12], &mut body)?;
        let (share, body) = (STANDARD_NO_PAD.encode(share), STANDARD_NO_PAD.encode(body));
        // A string never fails to take more.
        let _ = write!(file, "-> X25519 {share}\n{body}\n");
    }
    file.push_str("---");
    let sum = hmac::sign(&header_key(&file_key)?, file.as_bytes());
    let _ = writeln!(file, " {}", STANDARD_NO_PAD.encode(sum));
    let mut file = file.into_bytes();
    let nonce = random::<PAYLOAD_NONCE>()?;
    file.extend_from_slice(nonce.expose_secret());
    let mut payload = key.expose_secret().to_vec();
    let payload_key = derive(nonce.expose_secret(), file_key.expose_secret(), b"payload")?;
    seal(&payload_key, ONLY_CHUNK, &mut payload)?;
    file.extend_from_slice(&payload);
    Ok((key, file))
}

/// The key in such a file.
///
/// # Errors
/// If it is for none of these identities, or isn't as it was written.
pub fn key_in(file: &[u8], identities: &[Identity]) -> Result<Key, AgeError> {
    const MALFORMED: AgeError = AgeError::Malformed;
    // Before the payload there is text.
    let header_end = file
        .windows(5)
        .take(LONGEST)
        .position(|window| window == b"\n--- ")
        .ok_or(MALFORMED)?;
    let (header, rest) = file.split_at(header_end + 4);
    let header = std::str::from_utf8(header).map_err(|_| MALFORMED)?;
    let line_end = rest.iter().position(|byte| *byte == b'\n').ok_or(MALFORMED)?;
    let (sum, payload) = (&rest[1..line_end], &rest[line_end + 1..]);
    let sum = STANDARD_NO_PAD.decode(sum).map_err(|_| MALFORMED)?;

    let mut lines = header.strip_prefix(VERSION).ok_or(MALFORMED)?.lines();
    let mut file_key = None;
    while let Some(stanza) = lines.next() {
        // Of another kind, or not for us: those of the others are passed over, bodies and all.
        let Some(share) = stanza.strip_prefix("-> X25519 ") else {
            continue;
        };
        let body = lines.next().ok_or(MALFORMED)?;
        let decoded = [share, body].map(|text| STANDARD_NO_PAD.decode(text));
        let [Ok(share), Ok(body)] = decoded else {
            return Err(MALFORMED);
        };
        if file_key.is_none() {
            file_key = identities.iter().find_map(|identity| unwrap(identity, &share, &body));
        }
    }
    let file_key = file_key.ok_or(AgeError::NotFor)?;
    hmac::verify(&header_key(&file_key)?, header.as_bytes(), &sum).map_err(|_| MALFORMED)?;
    let (nonce, sealed) = payload.split_at_checked(PAYLOAD_NONCE).ok_or(MALFORMED)?;
    let payload_key = derive(nonce, file_key.expose_secret(), b"payload")?;
    let key = open(&payload_key, ONLY_CHUNK, sealed).ok_or(MALFORMED)?;
    let key: [u8; LENGTH] = key.expose_secret().try_into().map_err(|_| MALFORMED)?;
    Ok(SecretBox::new(Box::new(key)))
}

fn unwrap(identity: &Identity, share: &[u8], body: &[u8]) -> Option<SecretBox<[u8; FILE_KEY]>> {
    let wrap = wrap_key(&identity.secret, share, share, &identity.public).ok()?;
    let file_key = open(&wrap, [0; 12], body)?;
    let file_key: [u8; FILE_KEY] = file_key.expose_secret().try_into().ok()?;
    Some(SecretBox::new(Box::new(file_key)))
}

fn wrap_key(ours: &PrivateKey, theirs: &[u8], share: &[u8], recipient: &[u8]) -> Result<Key, Unspecified> {
    let theirs = UnparsedPublicKey::new(&X25519, theirs);
    agree(ours, theirs, Unspecified, |shared| {
        derive(&[share, recipient].concat(), shared, X25519_INFO)
    })
}

fn header_key(file_key: &SecretBox<[u8; FILE_KEY]>) -> Result<hmac::Key, Unspecified> {
    let key = derive(&[], file_key.expose_secret(), b"header")?;
    Ok(hmac::Key::new(hmac::HMAC_SHA256, key.expose_secret()))
}

fn derive(salt: &[u8], secret: &[u8], info: &[u8]) -> Result<Key, Unspecified> {
    let mut key = Box::new([0; LENGTH]);
    let info = [info];
    Salt::new(HKDF_SHA256, salt)
        .extract(secret)
        .expand(&info, HKDF_SHA256)?
        .fill(&mut *key)?;
    Ok(SecretBox::new(key))
}

fn seal(key: &Key, nonce: [u8; 12], bytes: &mut Vec<u8>) -> Result<(), Unspecified> {
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key.expose_secret())?);
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), bytes)
}

fn open(key: &Key, nonce: [u8; 12], sealed: &[u8]) -> Option<SecretBox<[u8]>> {
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key.expose_secret()).ok()?);
    let mut bytes = sealed.to_vec();
    let opened = key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut bytes);
    let opened = Box::from(&*opened.ok()?);
    Some(SecretBox::new(opened))
}

fn random<const N: usize>() -> Result<SecretBox<[u8; N]>, Unspecified> {
    let mut bytes = Box::new([0; N]);
    rand::fill(&mut *bytes)?;
    Ok(SecretBox::new(bytes))
}

#[cfg(test)]
mod tests;
