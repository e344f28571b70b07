//! Bodies, for events of the levels that ask for them: kept as they pass, up to a limit, and read when the event is
//! written. A body is never waited for, and never held back.
//!
//! What is written is JSON, without what must not be: [`Masks`] have the last word on every object, and what can't be
//! read whole isn't written at all, for nobody could say what is in it.

use std::{
    io::Read as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use flate2::read::MultiGzDecoder;
use http::{HeaderMap, header};
use serde_json::Value;

use super::mask::Masks;
use crate::request_info::{Reading, RequestInfo, ResourceRequest};

/// How much is kept of bodies, and what isn't written of them.
#[derive(Debug, Clone)]
pub struct BodyTerms {
    /// Bytes of each body, decoded.
    pub limit: usize,
    /// What is masked.
    pub masks: Arc<Masks>,
}

impl Default for BodyTerms {
    fn default() -> Self {
        Self {
            limit: 64 * 1024,
            masks: Arc::default(),
        }
    }
}

/// A body on its way.
#[derive(Debug)]
pub struct Capture {
    limit: usize,
    form: Form,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    bytes: Vec<u8>,
    is_cut: bool,
}

/// What a body's head says of its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Json,
    GzippedJson,
    /// Not read, and why.
    Other(&'static str),
}

/// A body that has passed.
#[derive(Debug, Clone)]
pub(super) struct Taken {
    bytes: Vec<u8>,
    is_cut: bool,
    limit: usize,
    form: Form,
}

/// The bodies of a request, for its event.
#[derive(Debug, Clone)]
pub struct Bodies {
    pub(super) request: Option<Taken>,
    pub(super) response: Option<Taken>,
    masks: Arc<Masks>,
    omit_managed_fields: bool,
}

impl Capture {
    /// For the body that comes behind this head.
    #[must_use]
    pub fn of(headers: &HeaderMap, limit: usize) -> Self {
        Self {
            limit,
            form: Form::of(headers),
            kept: Mutex::default(),
        }
    }

    /// Some of it passes.
    pub fn passes(&self, data: &[u8]) {
        let mut kept = self.kept();
        let room = match self.form {
            Form::Json | Form::GzippedJson => self.limit.saturating_sub(kept.bytes.len()),
            Form::Other(_) => 0,
        };
        if kept.is_cut || data.len() > room {
            // A part of it is of no use: that there was more is all that is told.
            *kept = Kept {
                bytes: Vec::new(),
                is_cut: true,
            };
        } else {
            kept.bytes.extend_from_slice(data);
        }
    }

    /// What there was of it; `None` if there was nothing.
    pub(super) fn take(&self) -> Option<Taken> {
        let Kept { bytes, is_cut } = std::mem::take(&mut *self.kept());
        (is_cut || !bytes.is_empty()).then_some(Taken {
            bytes,
            is_cut,
            limit: self.limit,
            form: self.form,
        })
    }

    /// A poisoned lock is taken over: what it guards is whole after each change.
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Form {
    fn of(headers: &HeaderMap) -> Self {
        let text = |name| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
        };
        let kind = text(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim();
        // YAML has JSON in it: a patch to apply is JSON as often as not, and is tried.
        let is_json = kind.is_empty() || kind.ends_with("json") || kind == "application/apply-patch+yaml";
        if kind.contains("protobuf") {
            return Self::Other("protobuf is not decoded");
        }
        if !is_json {
            return Self::Other("not JSON");
        }
        match text(header::CONTENT_ENCODING).trim() {
            "" | "identity" => Self::Json,
            "gzip" => Self::GzippedJson,
            _ => Self::Other("its encoding is not understood"),
        }
    }
}

impl Taken {
    /// How much of memory it takes, in bytes.
    pub(super) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// As it is written; or why it isn't.
    fn object(&self, of: Option<&ResourceRequest>, bodies: &Bodies) -> Result<String, &'static str> {
        const CUT: &str = "larger than --audit-max-body";
        let mut plain = Vec::new();
        let bytes = match self.form {
            Form::Other(why) => return Err(why),
            Form::Json if self.is_cut => return Err(CUT),
            Form::Json => &self.bytes,
            Form::GzippedJson => {
                let most = self.limit as u64 + 1;
                let decoded = MultiGzDecoder::new(&*self.bytes).take(most).read_to_end(&mut plain);
                if self.is_cut || plain.len() > self.limit {
                    return Err(CUT);
                }
                decoded.map_err(|_| "its gzip is broken")?;
                &plain
            }
        };
        let mut object: Value = serde_json::from_slice(bytes).map_err(|_| "not JSON")?;
        bodies.masks.mask(&mut object, of);
        if bodies.omit_managed_fields {
            without_managed_fields(&mut object);
        }
        serde_json::to_string(&object).map_err(|_| "not JSON")
    }
}

impl Bodies {
    /// What there was of both; `None` if of neither.
    pub(crate) fn take(bodies: [Option<&Capture>; 2], terms: &BodyTerms, omit_managed_fields: bool) -> Option<Self> {
        let [request, response] = bodies.map(|body| body.and_then(Capture::take));
        (request.is_some() || response.is_some()).then(|| Self {
            request,
            response,
            masks: Arc::clone(&terms.masks),
            omit_managed_fields,
        })
    }

    /// How much of memory they take, in bytes.
    pub(super) fn size(&self) -> usize {
        let sizes = [&self.request, &self.response];
        sizes.into_iter().flatten().map(Taken::size).sum()
    }

    /// Both as they are written, or why not.
    pub(super) fn objects(&self, reading: &Reading) -> [Option<Result<String, &'static str>>; 2] {
        let of = match reading {
            Ok(RequestInfo::Resource(request)) => Some(request),
            _ => None,
        };
        [&self.request, &self.response].map(|taken| taken.as_ref().map(|taken| taken.object(of, self)))
    }
}

/// Whether a request's bodies are objects, and not streams or another server's.
pub(crate) fn has_objects(reading: &Reading) -> bool {
    let Ok(RequestInfo::Resource(request)) = reading else {
        return false;
    };
    let streams = matches!(
        request.subresource.as_str(),
        "exec" | "attach" | "portforward" | "proxy" | "log"
    );
    !streams && !matches!(request.verb, "watch" | "proxy")
}

fn without_managed_fields(value: &mut Value) {
    let drop = |object: &mut Value| {
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
    };
    drop(value);
    for item in value
        .get_mut("items")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        drop(item);
    }
    for row in value
        .get_mut("rows")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if let Some(object) = row.get_mut("object") {
            drop(object);
        }
    }
}

#[cfg(test)]
mod tests;
