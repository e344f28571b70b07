//! The fields of an answer, of which some may not be (RFC 9113, sections 8.2 and 8.3).

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::{
    Fault,
    hpack::{
        Malformed,
        decoder::{Decoder, Name, Pseudo},
    },
};

/// How large an answer's head may be, as RFC 9113, section 6.5.2, counts. As much is allowed over HTTP/1.1.
pub(super) const HEADER_LIST: u32 = 256 * 1024;

/// As many fields as most answers have: room for them is made at once.
pub(super) const USUAL: usize = 12;

/// What was in a block.
pub(super) struct Fields {
    pub(super) status: Option<StatusCode>,
    pub(super) map: HeaderMap,
}

/// Fields that are a connection's, and that no message may have (RFC 9113, section 8.2.2).
pub(super) const CONNECTIONS: [HeaderName; 5] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

impl Fields {
    /// All of the block is decoded, whatever is wrong with a field: that is the stream's fault, and the outer one the
    /// connection's.
    pub(super) fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Result<Self, Fault>, Malformed> {
        let mut fields = Ok(Self {
            status: None,
            map: HeaderMap::with_capacity(USUAL),
        });
        let mut size = 0;
        decoder.decode(block, |field| {
            size += field.size;
            if let Ok(known) = &mut fields
                && let Err(fault) = known.add(&field.name, field.value.as_ref(), size)
            {
                fields = Err(fault);
            }
        })?;
        Ok(fields)
    }

    fn add(&mut self, name: &Name, value: Option<&HeaderValue>, size: usize) -> Result<(), Fault> {
        let value = value.ok_or(Fault::protocol("a field's value can't be one"))?;
        if size > HEADER_LIST as usize {
            return Err(Fault::protocol("a head is larger than allowed"));
        }
        match name {
            Name::Pseudo(Pseudo::Status) if self.status.is_some() || !self.map.is_empty() => {
                Err(Fault::protocol("a status is not the first field"))
            }
            Name::Pseudo(Pseudo::Status) => {
                let status = StatusCode::from_bytes(value.as_bytes());
                self.status = Some(status.map_err(|_| Fault::protocol("a status isn't a number"))?);
                Ok(())
            }
            Name::Field(name) if CONNECTIONS.contains(name) => {
                Err(Fault::protocol("a field is one that only HTTP/1.1 has"))
            }
            Name::Field(name) => match self.map.try_append(name.clone(), value.clone()) {
                Ok(_) => Ok(()),
                Err(_) => Err(Fault::protocol("a head has too many fields")),
            },
            Name::Pseudo(_) | Name::Wrong => Err(Fault::protocol("a field's name can't be one")),
        }
    }

    /// The length that an answer says.
    pub(super) fn length(&self) -> Result<Option<u64>, Fault> {
        length(&self.map)
    }
}

/// The length that a message says.
pub(super) fn length(fields: &HeaderMap) -> Result<Option<u64>, Fault> {
    let mut lengths = fields.get_all(header::CONTENT_LENGTH).iter();
    let Some(first) = lengths.next() else { return Ok(None) };
    let is_number = first.as_bytes().iter().all(u8::is_ascii_digit);
    let parsed = first.to_str().ok().and_then(|text| text.parse().ok());
    match parsed.filter(|_| is_number && lengths.next().is_none()) {
        Some(length) => Ok(Some(length)),
        None => Err(Fault::protocol("a message's length can't be read")),
    }
}
