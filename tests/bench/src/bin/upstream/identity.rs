//! What every request has to carry, and what none may: the work that the proxies are measured at.

use std::path::Path;

use anyhow::{Context as _, Result};

/// Headers that a proxy has to take off, by how they begin. Its own `X-Forwarded-For` is one of them.
const FOREIGN: [&str; 2] = ["x-remote-", "x-forwarded-"];

/// The identity that is let in.
#[derive(Debug)]
pub(crate) struct Expected {
    authorization: Vec<u8>,
    user: Option<Vec<u8>>,
}

/// What one request has shown of its identity so far.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    authorized: bool,
    impersonates: bool,
    foreign: bool,
}

impl Expected {
    pub(crate) fn new(token: &Path, user: Option<String>) -> Result<Self> {
        let token = std::fs::read_to_string(token).with_context(|| format!("reading {}", token.display()))?;
        Ok(Self {
            authorization: format!("Bearer {}", token.trim()).into_bytes(),
            user: user.map(String::into_bytes),
        })
    }

    /// Looks at one header.
    pub(crate) fn look(&self, shown: &mut Shown, name: &str, value: &[u8]) {
        // Most headers are told apart by their length alone.
        match name.len() {
            13 if name.eq_ignore_ascii_case("authorization") => {
                if shown.authorized || value != self.authorization {
                    shown.foreign = true;
                }
                shown.authorized = true;
            }
            16 if name.eq_ignore_ascii_case("impersonate-user") => {
                if shown.impersonates || self.user.as_deref() != Some(value) {
                    shown.foreign = true;
                }
                shown.impersonates = true;
            }
            9 if name.eq_ignore_ascii_case("forwarded") => shown.foreign = true,
            _ => {
                let begins = |prefix: &&str| {
                    name.get(..prefix.len())
                        .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
                };
                shown.foreign |= FOREIGN.iter().any(begins);
            }
        }
    }

    /// Whether a request that has shown this is let in.
    pub(crate) fn admits(&self, shown: &Shown) -> bool {
        shown.authorized && shown.impersonates == self.user.is_some() && !shown.foreign
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const TOKEN: (&str, &str) = ("Authorization", "Bearer ours");
    const USER: (&str, &str) = ("impersonate-user", "alice");

    #[rstest]
    #[case::all(&[TOKEN, USER, ("accept", "application/json")], true)]
    #[case::groups(&[TOKEN, USER, ("impersonate-group", "any")], true)]
    #[case::nothing(&[], false)]
    #[case::no_user(&[TOKEN], false)]
    #[case::no_token(&[USER], false)]
    #[case::another_token(&[("authorization", "Bearer theirs"), USER], false)]
    #[case::the_clients_token_too(&[TOKEN, ("authorization", "Bearer theirs"), USER], false)]
    #[case::another_user(&[TOKEN, ("Impersonate-User", "bob")], false)]
    #[case::two_users(&[TOKEN, USER, USER], false)]
    #[case::remote_user(&[TOKEN, USER, ("X-Remote-User", "root")], false)]
    #[case::forwarded_for(&[TOKEN, USER, ("x-forwarded-for", "10.0.0.1")], false)]
    #[case::forwarded(&[TOKEN, USER, ("Forwarded", "for=10.0.0.1")], false)]
    fn who_is_let_in(#[case] headers: &[(&str, &str)], #[case] admitted: bool) {
        let expected = Expected {
            authorization: b"Bearer ours".to_vec(),
            user: Some(b"alice".to_vec()),
        };
        let mut shown = Shown::default();
        for (name, value) in headers {
            expected.look(&mut shown, name, value.as_bytes());
        }
        assert_eq!(expected.admits(&shown), admitted);
    }
}
