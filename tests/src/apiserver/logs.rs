//! `pods/log`: a few lines, and with `follow=true` one more every so often until the client leaves.

use http::{HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::time::{Instant, sleep_until};

use super::{
    body::{self, Body, BoxError},
    request::ResourceTarget,
    resources::Resource,
    serve::Call,
    status::Status,
};

/// How many lines there are before anyone follows.
const LINES: u64 = 3;

/// Answers a log.
pub(crate) fn serve(call: &Call, target: &ResourceTarget) -> Result<Response<Body>, Status> {
    let pods = Resource::find("", "v1", "pods").ok_or_else(Status::no_such_path)?;
    call.shared.store.get(pods, &target.namespace, &target.name)?;
    let tail = call
        .query
        .first("tailLines")
        .map(|lines| {
            lines
                .parse::<u64>()
                .map_err(|_| Status::bad_request("tailLines must be a number"))
        })
        .transpose()?
        .unwrap_or(LINES);
    let pod = target.name.clone();
    let text = move |line: u64| format!("{pod} line {line}\n");
    let there: String = (LINES - tail.min(LINES) + 1..=LINES).map(&text).collect();
    let body = if call.query.flag("follow") {
        let interval = call.shared.log_interval();
        let stop = call.connection.stop.clone();
        let first = (Some(there), LINES + 1, Instant::now() + interval);
        body::boxed(StreamBody::new(futures_util::stream::unfold(
            (first, text, stop),
            move |((there, line, due), text, stop)| async move {
                if let Some(there) = there {
                    let next = (None, line, due);
                    return Some((Ok(Frame::data(there.into())), (next, text, stop)));
                }
                tokio::select! {
                    () = sleep_until(due) => {}
                    () = stop.cancelled() => return None,
                }
                let frame = Frame::data(text(line).into());
                let next = (None, line + 1, due + interval);
                Some((Ok::<_, BoxError>(frame), (next, text, stop)))
            },
        )))
    } else {
        body::full(there)
    };
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(response)
}
