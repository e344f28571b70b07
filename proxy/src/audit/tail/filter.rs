//! Which events somebody wants to see, as a query of a URL says it.

use std::{fmt, str::FromStr};

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::audit::event::Event;

/// Which events are wanted. Everything that is said must hold; nothing said is all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// The session: its name, or namespace/name.
    pub session: Option<String>,
    /// The session's namespace, which is its pods' as well.
    pub namespace: Option<String>,
    /// The pod: its name, or namespace/name.
    pub pod: Option<String>,
    /// Any of these verbs.
    pub verbs: Vec<String>,
    /// Any of these codes.
    pub codes: Vec<Codes>,
    /// What the agent itself refused, and nothing else.
    pub refused: bool,
}

/// A code, or a class of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codes {
    /// This one.
    One(u16),
    /// All that begin with this digit.
    Class(u16),
}

/// What can't be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// No code.
    #[error("{0:?} is no code: write one like 403, or a class like 4xx")]
    Code(String),
    /// A word that isn't known.
    #[error("{0:?} can't be filtered by: use the plugin of the agents' release")]
    Unknown(String),
    /// A value that isn't text.
    #[error("the value of {0} is not UTF-8")]
    Text(&'static str),
}

impl Filter {
    /// Reads a query, without its question mark.
    ///
    /// # Errors
    /// If it says what isn't known here: what can't be filtered by must not be shown unfiltered.
    pub fn from_query(query: &str) -> Result<Self, FilterError> {
        let mut filter = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let text = |name| match percent_decode_str(value).decode_utf8() {
                Ok(text) => Ok(text.into_owned()),
                Err(_) => Err(FilterError::Text(name)),
            };
            match name {
                "session" => filter.session = Some(text("session")?),
                "namespace" => filter.namespace = Some(text("namespace")?),
                "pod" => filter.pod = Some(text("pod")?),
                "verb" => filter.verbs.push(text("verb")?),
                "code" => filter.codes.push(text("code")?.parse()?),
                "refused" => filter.refused = true,
                other => return Err(FilterError::Unknown(other.to_owned())),
            }
        }
        Ok(filter)
    }

    /// As a query, without its question mark.
    #[must_use]
    pub fn to_query(&self) -> String {
        let texts = [
            ("session", &self.session),
            ("namespace", &self.namespace),
            ("pod", &self.pod),
        ];
        let texts = texts
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.clone()?)));
        let verbs = self.verbs.iter().map(|verb| ("verb", verb.clone()));
        let codes = self.codes.iter().map(|codes| ("code", codes.to_string()));
        let refused = self.refused.then(|| ("refused", "true".to_owned()));
        let pairs = texts.chain(verbs).chain(codes).chain(refused);
        let pairs: Vec<String> = pairs
            .map(|(name, value)| format!("{name}={}", utf8_percent_encode(&value, NON_ALPHANUMERIC)))
            .collect();
        pairs.join("&")
    }

    /// Whether an event is wanted.
    pub(super) fn matches(&self, event: &Event) -> bool {
        let wanted = &event.asked.pod.wanted;
        let id = &wanted.session;
        let is_session = |wanted: &String| match wanted.split_once('/') {
            Some((namespace, name)) => (id.namespace(), id.name()) == (namespace, name),
            None => id.name() == wanted,
        };
        // A pod of a session file may be called whatever its file says.
        let bare = wanted.name.rsplit_once('/').map_or(&*wanted.name, |(_, name)| name);
        let is_pod = |pod: &String| *pod == *wanted.name || pod == bare;
        (!self.refused || event.refused.is_some())
            && self.session.as_ref().is_none_or(is_session)
            && self.namespace.as_deref().is_none_or(|wanted| id.namespace() == wanted)
            && self.pod.as_ref().is_none_or(is_pod)
            && (self.codes.is_empty() || self.codes.iter().any(|codes| codes.have(event.code)))
            && (self.verbs.is_empty() || self.verbs.iter().any(|verb| *verb == event.verb()))
    }
}

impl Codes {
    fn have(self, code: u16) -> bool {
        match self {
            Self::One(one) => code == one,
            Self::Class(class) => code / 100 == class,
        }
    }
}

impl FromStr for Codes {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let error = || FilterError::Code(text.to_owned());
        let is_code = |code: &u16| (100..600).contains(code);
        if let Some(class) = text.strip_suffix("xx").or_else(|| text.strip_suffix("XX")) {
            let class = class.parse().ok().filter(|class| (1..6).contains(class));
            return class.map(Self::Class).ok_or_else(error);
        }
        text.parse().ok().filter(is_code).map(Self::One).ok_or_else(error)
    }
}

impl fmt::Display for Codes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(code) => write!(f, "{code}"),
            Self::Class(class) => write!(f, "{class}xx"),
        }
    }
}
