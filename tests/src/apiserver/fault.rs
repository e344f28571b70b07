//! Faults on request: which requests are to go wrong, and how. Matching is here; `serve` carries it out.

use std::sync::Mutex;

use http::{Method, request::Parts};
use serde::{Deserialize, Serialize};

use super::sync::lock;

/// Which requests go wrong, how, and how often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fault {
    /// Only requests of this method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Only requests whose path begins so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_prefix: Option<String>,
    /// Only upgrades (`true`), or only what isn't one (`false`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<bool>,
    /// How many requests it happens to; not given is all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
    /// What happens.
    pub action: FaultAction,
}

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    deny_unknown_fields,
    tag = "kind"
)]
pub enum FaultAction {
    /// Answers this code with a `Status`, whatever was asked.
    Status {
        /// The code.
        code: u16,
        /// The message.
        #[serde(default)]
        message: String,
    },
    /// Takes the request and never answers.
    Stall,
    /// Sends a TCP reset, which ends every request of the connection.
    Reset,
    /// Answers as always, and tells the connection to go away.
    GoAway,
    /// Answers as always up to so many bytes of body, and breaks the stream there.
    DieMidBody {
        /// How many bytes still leave.
        after: u64,
    },
    /// Answers 302.
    Redirect {
        /// Where to.
        location: String,
    },
    /// Serves the upgrade as always, with these bytes in the same write as the head of the 101.
    GlueAfter101 {
        /// The bytes, as text.
        bytes: String,
    },
}

impl Fault {
    /// A fault that every request meets.
    #[must_use]
    pub fn always(action: FaultAction) -> Self {
        Self {
            method: None,
            path_prefix: None,
            upgrade: None,
            times: None,
            action,
        }
    }

    /// Only for paths that begin so.
    #[must_use]
    pub fn on_path(mut self, prefix: &str) -> Self {
        self.path_prefix = Some(prefix.to_owned());
        self
    }

    /// Only for upgrades.
    #[must_use]
    pub fn on_upgrade(mut self) -> Self {
        self.upgrade = Some(true);
        self
    }

    /// Only so many times.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    fn matches(&self, method: &Method, path: &str, upgrade: bool) -> bool {
        self.times != Some(0)
            && self.method.as_deref().is_none_or(|own| own == method.as_str())
            && self
                .path_prefix
                .as_deref()
                .is_none_or(|prefix| path.starts_with(prefix))
            && self.upgrade.is_none_or(|own| own == upgrade)
    }
}

/// The faults in force.
#[derive(Debug, Default)]
pub(crate) struct Faults(Mutex<Vec<Fault>>);

impl Faults {
    pub(crate) fn add(&self, fault: Fault) {
        lock(&self.0).push(fault);
    }

    pub(crate) fn clear(&self) {
        lock(&self.0).clear();
    }

    pub(crate) fn list(&self) -> Vec<Fault> {
        lock(&self.0).clone()
    }

    /// The first fault that this request meets, counted off.
    pub(crate) fn take(&self, parts: &Parts) -> Option<FaultAction> {
        let upgrade = parts.headers.contains_key(http::header::UPGRADE);
        let mut faults = lock(&self.0);
        let fault = faults
            .iter_mut()
            .find(|fault| fault.matches(&parts.method, parts.uri.path(), upgrade))?;
        if let Some(times) = &mut fault.times {
            *times -= 1;
        }
        Some(fault.action.clone())
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::always(Fault::always(FaultAction::Stall), true)]
    #[case::path(Fault::always(FaultAction::Stall).on_path("/api/"), true)]
    #[case::other_path(Fault::always(FaultAction::Stall).on_path("/apis/"), false)]
    #[case::upgrade(Fault::always(FaultAction::Stall).on_upgrade(), false)]
    #[case::never(Fault::always(FaultAction::Stall).times(0), false)]
    fn matching(#[case] fault: Fault, #[case] hit: bool) {
        assert_eq!(fault.matches(&Method::GET, "/api/v1/pods", false), hit);
    }

    #[test]
    fn a_fault_is_counted_off() {
        let faults = Faults::default();
        faults.add(Fault::always(FaultAction::Stall).times(2));
        let (parts, ()) = http::Request::new(()).into_parts();
        assert!(faults.take(&parts).is_some());
        assert!(faults.take(&parts).is_some());
        assert!(faults.take(&parts).is_none());
    }

    #[test]
    fn the_wire_form_is_tagged_by_kind() {
        let text = r#"{"pathPrefix":"/api","times":1,"action":{"kind":"dieMidBody","after":10}}"#;
        let fault: Fault = serde_json::from_str(text).unwrap();
        assert_eq!(fault.action, FaultAction::DieMidBody { after: 10 });
        assert_eq!(serde_json::to_string(&fault).unwrap(), text);
    }
}
