//! Recordings that only some may read. Each has a key of its own, wrapped by age in its first line, and what a write puts
//! down is sealed with it as one frame: what an agent that is killed leaves can be opened up to its last write, as it can be
//! read where nothing is sealed. A frame is bound to all that stands before it by the sum of that.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};

use crate::recording::age::{self, AgeError, Identity, Key, Recipient};

/// The number that a frame has, before what is sealed.
const NUMBER: usize = 8;

/// What the first line says of it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Wrapped {
    /// Whom it is for.
    recipients: Vec<String>,
    /// An age file with the recording's key, in base64.
    key: String,
}

/// Seals what is written.
pub(super) struct Seal {
    key: LessSafeKey,
    /// Never used twice: also of a frame that couldn't be written, some may have been.
    number: u64,
    /// Room for the last frame, kept for the next: new room as large is the kernel's to give, page by page.
    frame: Vec<u8>,
    text: String,
}

impl Seal {
    pub(super) fn new(recipients: &[Recipient]) -> Result<(Self, Wrapped), AgeError> {
        let (key, file) = age::new_key(recipients)?;
        let wrapped = Wrapped {
            recipients: recipients.iter().map(ToString::to_string).collect(),
            key: STANDARD.encode(file),
        };
        let key = aead(&key)?;
        let seal = Self {
            key,
            number: 0,
            frame: Vec::new(),
            text: String::new(),
        };
        Ok((seal, wrapped))
    }

    /// The text of a frame, after what sums up to `before`.
    pub(super) fn close(&mut self, lines: &[u8], before: &str) -> Result<&str, AgeError> {
        let number = self.number.to_be_bytes();
        self.number += 1;
        let frame = &mut self.frame;
        frame.clear();
        frame.extend_from_slice(&number);
        frame.extend_from_slice(lines);
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(number), Aad::from(before), &mut frame[NUMBER..])?;
        frame.extend_from_slice(tag.as_ref());
        self.text.clear();
        STANDARD.encode_string(&*frame, &mut self.text);
        Ok(&self.text)
    }
}

/// Opens what was sealed.
pub(super) struct Opener {
    key: LessSafeKey,
}

impl Opener {
    /// For a recording whose first line says that.
    pub(super) fn new(wrapped: &Wrapped, identities: &[Identity]) -> Result<Self, AgeError> {
        let file = STANDARD.decode(&wrapped.key).map_err(|_| AgeError::Malformed)?;
        let key = age::key_in(&file, identities)?;
        Ok(Self { key: aead(&key)? })
    }

    /// The lines of a frame; none where it isn't what was sealed, or not behind what sums up to `before`.
    pub(super) fn open(&self, text: &str, before: &str) -> Option<Vec<u8>> {
        let mut frame = STANDARD.decode(text).ok()?;
        let (number, sealed) = frame.split_first_chunk_mut::<NUMBER>()?;
        let lines = self.key.open_in_place(nonce(*number), Aad::from(before), sealed);
        Some(lines.ok()?.to_vec())
    }
}

fn aead(key: &Key) -> Result<LessSafeKey, AgeError> {
    Ok(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.expose_secret())?))
}

fn nonce(number: [u8; NUMBER]) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&number);
    Nonce::assume_unique_for_key(nonce)
}
