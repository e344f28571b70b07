//! A LIST of exactly the size that was asked for, made while it is sent: nothing of it is ever held but one item.

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::StreamBody;

use super::{
    body::{self, Body, BoxError},
    gzip::{self, GzipStream},
    request::Query,
    resources::Resource,
    status::Status,
};

/// The parameter by which a client asks for a size.
const PARAMETER: &str = "understudySize";
/// The size of an item; the last one takes up what is left.
const ITEM: u64 = 64 * 1024;

/// The size that the query asks for.
pub(crate) fn asked(query: &Query) -> Result<Option<u64>, Status> {
    query
        .first(PARAMETER)
        .map(|text| {
            parse_quantity(text)
                .ok_or_else(|| Status::bad_request(format!("{PARAMETER} is a size such as 64Ki or 1Gi")))
        })
        .transpose()
}

fn parse_quantity(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|char: char| char.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// Answers a list of that many bytes.
pub(crate) fn list(
    resource: &'static Resource,
    namespace: &str,
    size: u64,
    accepts_gzip: bool,
) -> Result<Response<Body>, Status> {
    let pieces = Pieces::new(resource, namespace, size)
        .ok_or_else(|| Status::bad_request(format!("no list of this resource is as short as {size} bytes")))?;
    if accepts_gzip && size > gzip::THRESHOLD as u64 {
        let state = Some((pieces, GzipStream::new()));
        let stream = futures_util::stream::unfold(state, |state| async move {
            let (mut pieces, mut gzip) = state?;
            for piece in pieces.by_ref() {
                let out = gzip.push(&piece);
                if !out.is_empty() {
                    return Some((Ok::<_, BoxError>(Frame::data(out)), Some((pieces, gzip))));
                }
            }
            Some((Ok(Frame::data(gzip.finish())), None))
        });
        return Ok(gzip::response(body::boxed(StreamBody::new(stream))));
    }
    let frames = pieces.map(|piece| Ok::<_, BoxError>(Frame::data(piece)));
    let stream = futures_util::stream::iter(frames);
    let mut response = Response::new(body::boxed(StreamBody::new(stream)));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// The list, in pieces of an item or less.
struct Pieces {
    namespace: String,
    filler: Bytes,
    head: Option<Bytes>,
    left: u64,
    index: u64,
}

const TAIL: &str = "]}\n";
const ITEM_TAIL: &str = "\"}}";

impl Pieces {
    fn new(resource: &Resource, namespace: &str, size: u64) -> Option<Self> {
        let head = format!(
            r#"{{"kind":"{}List","apiVersion":"{}","metadata":{{"resourceVersion":"1"}},"items":["#,
            resource.kind,
            resource.api_version()
        );
        let mut pieces = Self {
            namespace: namespace.to_owned(),
            // The last item may be longer than the others by as much as was too little for one of its own.
            filler: vec![b'.'; usize::try_from(2 * ITEM).ok()?].into(),
            head: None,
            left: size.checked_sub((head.len() + TAIL.len()) as u64)?,
            index: 0,
        };
        if pieces.left < pieces.overhead() {
            return None;
        }
        pieces.head = Some(head.into());
        Some(pieces)
    }

    fn item_head(&self) -> String {
        let comma = if self.index == 0 { "" } else { "," };
        let namespace = if self.namespace.is_empty() {
            "default"
        } else {
            &self.namespace
        };
        format!(
            r#"{comma}{{"metadata":{{"name":"filler-{:012}","namespace":"{namespace}"}},"data":{{"filler":""#,
            self.index
        )
    }

    fn overhead(&self) -> u64 {
        (self.item_head().len() + ITEM_TAIL.len()) as u64
    }
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if let Some(head) = self.head.take() {
            return Some(head);
        }
        if self.left == 0 {
            // The tail is sent once: an index beyond all says that it was.
            let done = self.index == u64::MAX;
            self.index = u64::MAX;
            return (!done).then(|| Bytes::from_static(TAIL.as_bytes()));
        }
        // All that is left, unless there is room for a whole item and another after it.
        let size = if self.left >= 2 * ITEM { ITEM } else { self.left };
        let head = self.item_head();
        let filler = usize::try_from(size - self.overhead()).unwrap_or(0);
        let mut item = Vec::with_capacity(head.len() + filler + ITEM_TAIL.len());
        item.extend_from_slice(head.as_bytes());
        item.extend_from_slice(&self.filler[..filler]);
        item.extend_from_slice(ITEM_TAIL.as_bytes());
        self.left -= size;
        self.index += 1;
        Some(item.into())
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("0", Some(0))]
    #[case("64Ki", Some(65_536))]
    #[case("1Gi", Some(1 << 30))]
    #[case("1M", Some(1_000_000))]
    #[case("1Ti", None)]
    #[case("Gi", None)]
    #[case("-1", None)]
    #[case("99999999999Gi", None)]
    fn quantities(#[case] text: &str, #[case] size: Option<u64>) {
        assert_eq!(parse_quantity(text), size);
    }

    #[rstest]
    #[case(300)]
    #[case(64 * 1024)]
    #[case(2 * 64 * 1024)]
    #[case(3 * 64 * 1024 + 1)]
    #[case(3 * 64 * 1024 + 400)]
    #[case(1_000_000)]
    fn a_list_is_valid_and_of_the_size(#[case] size: u64) {
        let maps = Resource::find("", "v1", "configmaps").unwrap();
        let text: Vec<u8> = Pieces::new(maps, "big", size).unwrap().flatten().collect();
        assert_eq!(text.len() as u64, size);
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(value["kind"], "ConfigMapList");
        assert!(!value["items"].as_array().unwrap().is_empty());
    }

    #[test]
    fn no_list_is_shorter_than_one_item() {
        let maps = Resource::find("", "v1", "configmaps").unwrap();
        assert!(Pieces::new(maps, "", 100).is_none());
    }
}
