//! An image's name, parsed as Docker and containerd parse it.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};

/// The name that an image goes by: where it is kept, its repository, its tag.
///
/// The grammar is that of <https://pkg.go.dev/github.com/distribution/reference>, without digests: what is being
/// made can't be named by what it will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reference {
    registry: Option<String>,
    repository: String,
    tag: String,
}

impl Reference {
    /// The tag alone.
    pub(crate) fn tag(&self) -> &str {
        &self.tag
    }

    /// The name with nothing left to be guessed, as containerd keeps it and the kubelet asks for it.
    pub(crate) fn canonical(&self) -> String {
        let (repository, tag) = (&self.repository, &self.tag);
        match &self.registry {
            Some(registry) => format!("{registry}/{repository}:{tag}"),
            None if repository.contains('/') => format!("docker.io/{repository}:{tag}"),
            None => format!("docker.io/library/{repository}:{tag}"),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(registry) = &self.registry {
            write!(f, "{registry}/")?;
        }
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

impl FromStr for Reference {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.contains('@') {
            bail!("an image that is being made has no digest yet: name it REPOSITORY:TAG");
        }
        let (registry, rest) = match text.split_once('/') {
            // What tells a registry from a repository's first part is that it has a dot or a port, or is localhost.
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (Some(first.to_owned()), rest),
            _ => (None, text),
        };
        let (repository, tag) = rest.split_once(':').unwrap_or((rest, "latest"));
        if !registry.as_deref().is_none_or(is_registry) {
            bail!("`{text}`: what stands before the first `/` isn't a registry's host and port");
        }
        if !repository.split('/').all(is_component) {
            bail!("`{repository}` is no repository: lower-case letters and digits, with `.`, `_` or `-` between them");
        }
        if !is_tag(tag) {
            bail!("`{tag}` is no tag: up to 128 letters, digits, `_`, `.` and `-`, the first no `.` or `-`");
        }
        Ok(Self {
            registry,
            repository: repository.to_owned(),
            tag: tag.to_owned(),
        })
    }
}

fn is_registry(text: &str) -> bool {
    let (host, port) = text.split_once(':').unwrap_or((text, "443"));
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    host.split('.').all(is_label) && port.parse::<u16>().is_ok()
}

/// Letters and digits, parted by one `.`, one or two `_`, or any number of `-`.
fn is_component(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separators = text.split(is_word).filter(|separator| !separator.is_empty());
    text.starts_with(is_word)
        && text.ends_with(is_word)
        && separators
            .into_iter()
            .all(|separator| matches!(separator, "." | "_" | "__") || separator.chars().all(|c| c == '-'))
}

fn is_tag(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.len() <= 128 && text.starts_with(is_word) && text.chars().all(|c| is_word(c) || c == '.' || c == '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_understood_as_the_kubelet_understands_them() {
        for (text, shown, canonical) in [
            ("understudy", "understudy:latest", "docker.io/library/understudy:latest"),
            (
                "understudy:0.1.0",
                "understudy:0.1.0",
                "docker.io/library/understudy:0.1.0",
            ),
            (
                "team/understudy:v1",
                "team/understudy:v1",
                "docker.io/team/understudy:v1",
            ),
            (
                "registry.example:5000/team/a__b-c.d:1_2",
                "registry.example:5000/team/a__b-c.d:1_2",
                "registry.example:5000/team/a__b-c.d:1_2",
            ),
            (
                "localhost/understudy:x",
                "localhost/understudy:x",
                "localhost/understudy:x",
            ),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), shown);
            assert_eq!(reference.canonical(), canonical);
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "",
            "Understudy",
            "a//b",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a:",
            "a:.x",
            "a:b c",
            "a b",
            "host.example:port/a",
            "-host.example/a",
            "a@sha256:0123",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
        assert!(format!("a:{}", "x".repeat(129)).parse::<Reference>().is_err());
    }
}
