//! What is written of bodies, and what isn't.

use std::io::Write as _;

use flate2::{Compression, write::GzEncoder};
use rstest::rstest;
use serde_json::json;

use super::*;

const LIMIT: usize = 256;

fn reading(method: &str, uri: &str) -> Reading {
    RequestInfo::parse(&method.parse().unwrap(), &uri.parse().unwrap())
}

fn head(kind: &str, encoding: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in [(header::CONTENT_TYPE, kind), (header::CONTENT_ENCODING, encoding)] {
        if !value.is_empty() {
            headers.insert(name, value.parse().unwrap());
        }
    }
    headers
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// What comes of a body that passes in pieces.
fn written(head: &HeaderMap, body: &[u8]) -> Option<Result<String, &'static str>> {
    let capture = Capture::of(head, LIMIT);
    body.chunks(7).for_each(|piece| capture.passes(piece));
    let bodies = Bodies::take([Some(&capture), None], &BodyTerms::default(), false)?;
    let [request, response] = bodies.objects(&reading("POST", "/api/v1/namespaces/a/configmaps"));
    assert_eq!(response, None);
    request
}

#[rstest]
#[case::json("application/json", "", br#"{"a": 1}"#.to_vec(), Some(Ok(r#"{"a":1}"#)))]
#[case::with_charset("application/json; charset=utf-8", "identity", b"[]".to_vec(), Some(Ok("[]")))]
#[case::patch("application/merge-patch+json", "", b"{}".to_vec(), Some(Ok("{}")))]
#[case::applied_json("application/apply-patch+yaml", "", b"{}".to_vec(), Some(Ok("{}")))]
#[case::applied_yaml("application/apply-patch+yaml", "", b"a: b".to_vec(), Some(Err("not JSON")))]
#[case::unsaid("", "", b"{}".to_vec(), Some(Ok("{}")))]
#[case::nothing("application/json", "", Vec::new(), None)]
#[case::gzip("application/json", "gzip", gzip(br#"{"a":1}"#), Some(Ok(r#"{"a":1}"#)))]
#[case::no_gzip("application/json", "gzip", b"{}".to_vec(), Some(Err("its gzip is broken")))]
#[case::half_a_gzip("application/json", "gzip", gzip(br#"{"a":1}"#)[..15].to_vec(), Some(Err("its gzip is broken")))]
#[case::a_bomb("application/json", "gzip", gzip(&vec![b' '; 10_000_000])[..200].to_vec(), Some(Err("larger than --audit-max-body")))]
#[case::other_encoding("application/json", "br", b"x".to_vec(), Some(Err("its encoding is not understood")))]
#[case::protobuf("application/vnd.kubernetes.protobuf", "", b"k8s\0".to_vec(), Some(Err("protobuf is not decoded")))]
#[case::text("text/plain", "", b"hello".to_vec(), Some(Err("not JSON")))]
#[case::broken("application/json", "", b"{".to_vec(), Some(Err("not JSON")))]
#[case::as_much_as_may_be("application/json", "", format!("\"{}\"", "x".repeat(LIMIT - 2)).into_bytes(), Some(Ok("")))]
#[case::more("application/json", "", format!("\"{}\"", "x".repeat(LIMIT - 1)).into_bytes(), Some(Err("larger than --audit-max-body")))]
fn bodies_of_every_form(
    #[case] kind: &str,
    #[case] encoding: &str,
    #[case] body: Vec<u8>,
    #[case] expected: Option<Result<&str, &'static str>>,
) {
    let written = written(&head(kind, encoding), &body);
    match expected {
        // Its own text.
        Some(Ok("")) => assert_eq!(written, Some(Ok(String::from_utf8(body).unwrap()))),
        expected => assert_eq!(written, expected.map(|outcome| outcome.map(str::to_owned))),
    }
}

#[test]
fn no_more_is_kept_than_may_be() {
    let capture = Capture::of(&head("application/json", ""), LIMIT);
    for _ in 0..1000 {
        capture.passes(b"xxx");
        assert!(capture.kept().bytes.capacity() <= 2 * LIMIT);
    }
    assert_eq!(capture.take().unwrap().size(), 0, "half of it is of no use");
    let other = Capture::of(&head("application/vnd.kubernetes.protobuf", ""), LIMIT);
    other.passes(&[0; 1000]);
    assert_eq!(other.take().unwrap().size(), 0);
}

#[test]
fn managed_fields_are_left_out_where_the_policy_says_so() {
    let object = |managed: Value| json!({"metadata": {"name": "x", "managedFields": managed}});
    for (whole, expected) in [
        (object(json!([1])), json!({"metadata": {"name": "x"}})),
        (
            json!({"items": [object(json!([1]))]}),
            json!({"items": [{"metadata": {"name": "x"}}]}),
        ),
        (
            json!({"rows": [{"object": object(json!([1]))}]}),
            json!({"rows": [{"object": {"metadata": {"name": "x"}}}]}),
        ),
    ] {
        let mut object = whole;
        without_managed_fields(&mut object);
        assert_eq!(object, expected);
    }
}

#[rstest]
#[case("POST", "/api/v1/namespaces/a/pods", true)]
#[case("GET", "/api/v1/namespaces/a/pods/x", true)]
#[case("PUT", "/api/v1/namespaces/a/pods/x/status", true)]
#[case("GET", "/api/v1/namespaces/a/pods?watch=1", false)]
#[case("GET", "/api/v1/namespaces/a/pods/x/log", false)]
#[case("POST", "/api/v1/namespaces/a/pods/x/exec", false)]
#[case("POST", "/api/v1/namespaces/a/services/x/proxy/y", false)]
#[case("GET", "/version", false)]
fn streams_are_not_objects(#[case] method: &str, #[case] uri: &str, #[case] expected: bool) {
    assert_eq!(has_objects(&reading(method, uri)), expected);
}
