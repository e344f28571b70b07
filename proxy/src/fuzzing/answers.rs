//! A server's bytes on an HTTP/2 connection: the first says in pieces of what size they come, the rest follow its SETTINGS. Three
//! requests were sent before: for a head, for a body, and with a body of which a part has gone up.
//!
//! What is taken for answers is compared with what the `h2` crate takes for them.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};

use super::said::{Said, finish};
use crate::http2::{Answer, AnswerBody, BodyPiece, Client, Driver, Head};

const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
/// What went up of the last request's body.
const PART: &[u8] = b"part";
/// A server that says so much has us say no more than this for each byte of it, beside what we asked for.
const LOUDEST: usize = 3;
const ASKED: usize = 1024;

/// However the bytes are cut, they are taken for the same; and where both take an answer as whole, for what `h2` takes them.
pub(super) fn holds(bytes: &[u8]) {
    let Some((size, said)) = bytes.split_first() else {
        return;
    };
    let (whole, written) = ours(said, said.len().max(1));
    let (cut, _) = ours(said, usize::from(*size).max(1));
    assert!(
        written <= ASKED + LOUDEST * said.len(),
        "{written} bytes for {}",
        said.len()
    );
    for (whole, cut) in whole.iter().zip(&cut) {
        assert_eq!(whole.head, cut.head);
        assert_eq!(whole.is_whole, cut.is_whole);
        // A frame that goes wrong is not handed on where all of it has come.
        let (longer, shorter) = (
            whole.data.len().max(cut.data.len()),
            whole.data.len().min(cut.data.len()),
        );
        assert!(shorter == longer || !whole.is_whole);
        assert_eq!(whole.data[..shorter], cut.data[..shorter]);
        assert_eq!(whole.trailers, cut.trailers);
    }
    for (ours, theirs) in whole.iter().zip(&theirs(said)) {
        if ours.is_whole && theirs.is_whole {
            assert_eq!(ours, theirs);
        }
    }
}

/// What a request got.
#[derive(Debug, Default, PartialEq, Eq)]
struct Got {
    head: Option<(StatusCode, HeaderMap)>,
    data: Vec<u8>,
    trailers: Option<HeaderMap>,
    is_whole: bool,
}

fn head<'r>(method: &'r Method, authority: &'r HeaderValue, fields: &'r HeaderMap) -> Head<'r> {
    Head {
        method,
        authority,
        path: "/",
        fields,
    }
}

/// What the agent's client makes of it, and how many bytes it says.
fn ours(said: &[u8], size: usize) -> ([Got; 3], usize) {
    let (said, asked) = Said::new(SETTINGS, said, size);
    let Some(Ok((client, driver))) = finish(Client::greet(said)) else {
        unreachable!("SETTINGS is a greeting");
    };
    let mut driver: Driver<_, _> = driver;
    let (authority, fields) = (HeaderValue::from_static("k"), HeaderMap::new());
    let get = client.send(head(&Method::GET, &authority, &fields));
    let only_head = client.send(head(&Method::HEAD, &authority, &fields));
    let put = client.send_head(head(&Method::PUT, &authority, &fields));
    let (Ok(get), Ok(only_head), Ok((put, mut upload))) = (get, only_head, put) else {
        unreachable!("it is greeted");
    };
    assert!(matches!(finish(upload.send(Bytes::from_static(PART))), Some(Ok(()))));
    asked.set(true);
    assert!(finish(&mut driver).is_some(), "it closes, and that is the end");
    let written = driver.io().written;
    drop(driver);
    ([got(get), got(only_head), got(put)], written)
}

fn got(answer: Answer) -> Got {
    let mut got = Got::default();
    let answered = finish(answer);
    assert!(answered.is_some(), "the connection has ended, and somebody waits");
    let Some(Ok(answer)) = answered else { return got };
    let (head, mut body): (_, AnswerBody) = answer.into_parts();
    got.head = Some((head.status, head.headers));
    loop {
        match finish(std::future::poll_fn(|cx| body.poll_piece(cx))) {
            Some(Some(Ok(BodyPiece::Data(data)))) => got.data.extend_from_slice(&data),
            Some(Some(Ok(BodyPiece::Trailers(fields)))) => got.trailers = Some(fields),
            Some(Some(Err(_))) => return got,
            Some(None) => {
                got.is_whole = true;
                return got;
            }
            None => unreachable!("the connection has ended, and somebody waits"),
        }
    }
}

/// What the `h2` crate makes of it.
fn theirs(said: &[u8]) -> [Got; 3] {
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(256 * 1024)
        .max_frame_size(64 * 1024);
    let (io, asked) = Said::new(SETTINGS, said, said.len().max(1));
    let greeted = finish(builder.handshake::<_, Bytes>(io));
    let Some(Ok((mut sender, mut connection))) = greeted else {
        return Default::default();
    };
    let answers = [Method::GET, Method::HEAD, Method::PUT].map(|method| {
        let mut request = Request::new(());
        *request.uri_mut() = http::Uri::from_static("https://k/");
        request.method_mut().clone_from(&method);
        sender.send_request(request, method != Method::PUT)
    });
    let [Ok((get, _)), Ok((only_head, _)), Ok((put, mut upload))] = answers else {
        return Default::default();
    };
    upload.reserve_capacity(PART.len());
    let _ = upload.send_data(Bytes::from_static(PART), false);
    asked.set(true);
    let _ = finish(&mut connection);
    [get, only_head, put].map(|answer| {
        let mut got = Got::default();
        let Some(Ok(answer)) = finish(answer) else { return got };
        let (head, mut body) = answer.into_parts();
        got.head = Some((head.status, head.headers));
        while let Some(Some(data)) = finish(body.data()) {
            let Ok(data) = data else { return got };
            got.data.extend_from_slice(&data);
        }
        if let Some(Ok(trailers)) = finish(body.trailers()) {
            got.trailers = trailers;
            got.is_whole = true;
        }
        got
    })
}
