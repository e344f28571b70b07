//! Go's `httputil.ReverseProxy`; the program is tests/bench/reverseproxy/main.go.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::{STRIPPED, STRIPPED_PREFIXES, Start, Terms, write};

pub(super) fn start(terms: &Terms, program: &Path) -> Result<Start> {
    let file = write(terms, "reverseproxy.json", &configuration(terms).to_string())?;
    Ok(Start {
        program: program.to_owned(),
        arguments: vec!["-config".to_owned(), file],
    })
}

pub(super) fn configuration(terms: &Terms) -> Value {
    let set: Vec<Value> = terms
        .headers
        .iter()
        .map(|(name, value)| json!({"name": name, "value": value}))
        .collect();
    json!({
        "listen": terms.listen.to_string(),
        "upstream": terms.upstream.to_string(),
        "name": terms.name,
        "ca": terms.ca,
        "certificate": terms.certificate,
        "key": terms.key,
        "strip": STRIPPED,
        "stripPrefixes": STRIPPED_PREFIXES,
        "set": set,
    })
}
