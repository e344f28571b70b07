//! Kubernetes' protobuf, read for the kinds that kubectl sends so: small messages by a table of their fields. Answers
//! are JSON, which every client that sends protobuf also reads.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Buf;
use serde_json::{Map, Value, json};

/// The media type.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// What every message in this encoding begins with.
const MAGIC: &[u8] = b"k8s\0";

/// How a field is read.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Text,
    Number,
    /// Base64 in JSON.
    Bytes,
    Message(Fields),
    /// A map from text.
    MapOf(&'static Kind),
    List(&'static Kind),
}

/// The fields of a message: number, name, how to read it. Others are passed over.
type Fields = &'static [(u32, &'static str, Kind)];

const TEXT_MAP: Kind = Kind::MapOf(&Kind::Text);
const METADATA: Kind = Kind::Message(&[
    (1, "name", Kind::Text),
    (2, "generateName", Kind::Text),
    (3, "namespace", Kind::Text),
    (5, "uid", Kind::Text),
    (6, "resourceVersion", Kind::Text),
    (11, "labels", TEXT_MAP),
    (12, "annotations", TEXT_MAP),
]);
const RESOURCE_ATTRIBUTES: Kind = Kind::Message(&[
    (1, "namespace", Kind::Text),
    (2, "verb", Kind::Text),
    (3, "group", Kind::Text),
    (4, "version", Kind::Text),
    (5, "resource", Kind::Text),
    (6, "subresource", Kind::Text),
    (7, "name", Kind::Text),
]);
/// Without their times, which an approval may leave to the server.
const CONDITION: Kind = Kind::Message(&[
    (1, "type", Kind::Text),
    (2, "reason", Kind::Text),
    (3, "message", Kind::Text),
    (6, "status", Kind::Text),
]);
const OBJECT_REFERENCE: Kind = Kind::Message(&[
    (1, "kind", Kind::Text),
    (2, "apiVersion", Kind::Text),
    (3, "name", Kind::Text),
    (4, "uid", Kind::Text),
]);
const SUBJECT: Kind = Kind::Message(&[
    (1, "kind", Kind::Text),
    (2, "apiGroup", Kind::Text),
    (3, "name", Kind::Text),
    (4, "namespace", Kind::Text),
]);
const ROLE_REFERENCE: Kind = Kind::Message(&[
    (1, "apiGroup", Kind::Text),
    (2, "kind", Kind::Text),
    (3, "name", Kind::Text),
]);
const PATH_ATTRIBUTES: Kind = Kind::Message(&[(1, "path", Kind::Text), (2, "verb", Kind::Text)]);

fn fields(kind: &str) -> Option<Fields> {
    Some(match kind {
        "Namespace" | "ServiceAccount" | "SelfSubjectReview" => &[(1, "metadata", METADATA)],
        "ConfigMap" => &[
            (1, "metadata", METADATA),
            (2, "data", TEXT_MAP),
            (3, "binaryData", Kind::MapOf(&Kind::Bytes)),
        ],
        "Secret" => &[
            (1, "metadata", METADATA),
            (2, "data", Kind::MapOf(&Kind::Bytes)),
            (3, "type", Kind::Text),
            (4, "stringData", TEXT_MAP),
        ],
        "RoleBinding" | "ClusterRoleBinding" => &[
            (1, "metadata", METADATA),
            (2, "subjects", Kind::List(&SUBJECT)),
            (3, "roleRef", ROLE_REFERENCE),
        ],
        // As `kubectl certificate approve` sends it: of the spec, only what a change must leave as it is.
        "CertificateSigningRequest" => &[
            (1, "metadata", METADATA),
            (
                2,
                "spec",
                Kind::Message(&[
                    (1, "request", Kind::Bytes),
                    (5, "usages", Kind::List(&Kind::Text)),
                    (7, "signerName", Kind::Text),
                ]),
            ),
            (
                3,
                "status",
                Kind::Message(&[
                    (1, "conditions", Kind::List(&CONDITION)),
                    (2, "certificate", Kind::Bytes),
                ]),
            ),
        ],
        "SelfSubjectAccessReview" => &[
            (1, "metadata", METADATA),
            (
                2,
                "spec",
                Kind::Message(&[
                    (1, "resourceAttributes", RESOURCE_ATTRIBUTES),
                    (2, "nonResourceAttributes", PATH_ATTRIBUTES),
                ]),
            ),
        ],
        "SubjectAccessReview" => &[
            (1, "metadata", METADATA),
            (
                2,
                "spec",
                Kind::Message(&[
                    (1, "resourceAttributes", RESOURCE_ATTRIBUTES),
                    (2, "nonResourceAttributes", PATH_ATTRIBUTES),
                    (3, "user", Kind::Text),
                    (4, "groups", Kind::List(&Kind::Text)),
                    (6, "uid", Kind::Text),
                ]),
            ),
        ],
        "TokenReview" => &[
            (1, "metadata", METADATA),
            (
                2,
                "spec",
                Kind::Message(&[(1, "token", Kind::Text), (2, "audiences", Kind::List(&Kind::Text))]),
            ),
        ],
        "TokenRequest" => &[
            (1, "metadata", METADATA),
            (
                2,
                "spec",
                Kind::Message(&[
                    (1, "audiences", Kind::List(&Kind::Text)),
                    (3, "boundObjectRef", OBJECT_REFERENCE),
                    (4, "expirationSeconds", Kind::Number),
                ]),
            ),
        ],
        _ => return None,
    })
}

/// The object in a message; `None` if it can't be read or its kind isn't known here.
pub(crate) fn decode(bytes: &[u8]) -> Option<Value> {
    let envelope = read(
        bytes.strip_prefix(MAGIC)?,
        &[
            (
                1,
                "type",
                Kind::Message(&[(1, "apiVersion", Kind::Text), (2, "kind", Kind::Text)]),
            ),
            (2, "raw", Kind::Bytes),
        ],
    )?;
    let kind = envelope["type"]["kind"].as_str()?;
    let raw = STANDARD.decode(envelope["raw"].as_str().unwrap_or_default()).ok()?;
    let mut object = read(&raw, fields(kind)?)?;
    object["apiVersion"] = envelope["type"]["apiVersion"].clone();
    object["kind"] = json!(kind);
    Some(object)
}

fn read(mut bytes: &[u8], fields: Fields) -> Option<Value> {
    let mut object = Map::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let number = u32::try_from(tag >> 3).ok()?;
        let content = match tag & 7 {
            0 => {
                let value = varint(&mut bytes)?;
                let field = fields.iter().find(|(own, ..)| *own == number);
                if let Some((_, name, Kind::Number)) = field {
                    object.insert((*name).to_owned(), json!(value.cast_signed()));
                }
                continue;
            }
            1 => {
                bytes = bytes.get(8..)?;
                continue;
            }
            5 => {
                bytes = bytes.get(4..)?;
                continue;
            }
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let (content, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                content
            }
            _ => return None,
        };
        let Some((_, name, kind)) = fields.iter().find(|(own, ..)| *own == number) else {
            continue;
        };
        match kind {
            Kind::MapOf(kind) => {
                let (key, value) = entry(content, kind)?;
                let map = object.entry(*name).or_insert_with(|| json!({}));
                map[key] = value;
            }
            Kind::List(kind) => {
                let list = object.entry(*name).or_insert_with(|| json!([]));
                list.as_array_mut()?.push(single(content, kind)?);
            }
            kind => {
                // In proto2, as Kubernetes has it, an empty string is written out: it says nothing in JSON.
                let value = single(content, kind)?;
                if value != "" {
                    object.insert((*name).to_owned(), value);
                }
            }
        }
    }
    Some(Value::Object(object))
}

fn single(content: &[u8], kind: &Kind) -> Option<Value> {
    Some(match kind {
        Kind::Text => json!(std::str::from_utf8(content).ok()?),
        Kind::Bytes => json!(STANDARD.encode(content)),
        Kind::Message(fields) => read(content, fields)?,
        Kind::Number | Kind::MapOf(_) | Kind::List(_) => return None,
    })
}

fn entry(content: &[u8], kind: &Kind) -> Option<(String, Value)> {
    let entry = match kind {
        Kind::Text => read(content, &[(1, "key", Kind::Text), (2, "value", Kind::Text)])?,
        _ => read(content, &[(1, "key", Kind::Text), (2, "value", Kind::Bytes)])?,
    };
    let key = entry["key"].as_str().unwrap_or_default().to_owned();
    let value = entry.get("value").cloned().unwrap_or_else(|| json!(""));
    Some((key, value))
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = bytes.try_get_u8().ok()?;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let length = u8::try_from(content.len()).unwrap();
        assert!(length < 128);
        [&[number << 3 | 2, length], content].concat()
    }

    fn message(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC, &field(1, &meta), &field(2, raw)].concat()
    }

    #[test]
    fn a_config_map_is_read() {
        let metadata = [field(1, b"one"), field(2, b""), field(3, b"a")].concat();
        let entry = [field(1, b"k"), field(2, b"v")].concat();
        let raw = [field(1, &metadata), field(2, &entry), vec![9 << 3, 1]].concat();
        assert_eq!(
            decode(&message("v1", "ConfigMap", &raw)),
            Some(json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "one", "namespace": "a"},
                "data": {"k": "v"},
            }))
        );
    }

    #[test]
    fn an_approval_is_read() {
        let metadata = [field(1, b"one"), field(6, b"7")].concat();
        let condition = [field(1, b"Approved"), field(4, &[]), field(6, b"True")].concat();
        let raw = [field(1, &metadata), field(3, &field(1, &condition))].concat();
        assert_eq!(
            decode(&message("certificates.k8s.io/v1", "CertificateSigningRequest", &raw)),
            Some(json!({
                "apiVersion": "certificates.k8s.io/v1",
                "kind": "CertificateSigningRequest",
                "metadata": {"name": "one", "resourceVersion": "7"},
                "status": {"conditions": [{"type": "Approved", "status": "True"}]},
            }))
        );
    }

    #[test]
    fn a_request_for_a_token_is_read() {
        let pod = [field(1, b"Pod"), field(2, b"v1"), field(3, b"own"), field(4, b"")].concat();
        let spec = [field(1, b"a"), field(1, b"b"), field(3, &pod), vec![4 << 3, 0xd8, 0x04]].concat();
        assert_eq!(
            decode(&message("authentication.k8s.io/v1", "TokenRequest", &field(2, &spec))),
            Some(json!({
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {
                    "audiences": ["a", "b"], "expirationSeconds": 600,
                    "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "own"},
                },
            }))
        );
    }

    #[test]
    fn unknown_kinds_are_not_guessed() {
        assert_eq!(decode(&message("v1", "Pod", &[])), None);
        assert_eq!(decode(b"{}"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            decode(&message("v1", "ConfigMap", &bytes[..bytes.len().min(100)]));
            decode(&bytes);
        }
    }
}
