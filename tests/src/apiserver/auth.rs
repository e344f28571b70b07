//! Who a request comes from: by a client certificate, a bearer token of kube-apiserver's `--token-auth-file` or of a
//! service account, and anonymous for those who show neither. What the user may do is `rbac`'s; becoming someone else
//! is `impersonation`'s.

use std::{
    collections::{BTreeMap, HashMap},
    str::FromStr,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, header};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::{
    Shared,
    service_accounts::{self, ISSUER},
    status::Status,
};

/// The user that stands for no credential at all.
pub const ANONYMOUS: &str = "system:anonymous";
/// The group of everyone who showed a credential.
pub const AUTHENTICATED: &str = "system:authenticated";
/// The group of those who showed none.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The subprotocol by which a WebSocket client that can't set headers brings its token.
const WEBSOCKET_BEARER: &str = "base64url.bearer.authorization.k8s.io.";

/// A user as authentication leaves it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UserInfo {
    /// The user's name.
    #[serde(default)]
    pub username: String,
    /// The unique id; empty if there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// The groups, `system:authenticated` included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Whatever else the authenticator knows.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// The user without a credential.
    #[must_use]
    pub fn anonymous() -> Self {
        Self {
            username: ANONYMOUS.to_owned(),
            groups: vec![UNAUTHENTICATED.to_owned()],
            ..Self::default()
        }
    }

    /// The same, in the group of everyone who showed a credential.
    #[must_use]
    pub fn authenticated(mut self) -> Self {
        if !self.is_in(AUTHENTICATED) {
            self.groups.push(AUTHENTICATED.to_owned());
        }
        self
    }

    /// True if the user is in the group.
    #[must_use]
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }
}

/// Why a token file is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TokenTableError {
    /// Fewer than three columns.
    #[error("line {0}: expected token,user,uid[,\"group,group\"]")]
    Columns(usize),
    /// The token's column is empty.
    #[error("line {0}: the token is empty")]
    Token(usize),
    /// A quote is never closed.
    #[error("line {0}: a quote is not closed")]
    Quote(usize),
}

/// The tokens that are somebody's, in the form of kube-apiserver's `--token-auth-file`.
#[derive(Debug, Clone, Default)]
pub struct TokenTable(HashMap<String, UserInfo>);

impl FromStr for TokenTable {
    type Err = TokenTableError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut table = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            if line.trim().is_empty() {
                continue;
            }
            let mut columns = csv_columns(line).ok_or(TokenTableError::Quote(number))?.into_iter();
            let (Some(token), Some(username), Some(uid)) = (columns.next(), columns.next(), columns.next()) else {
                return Err(TokenTableError::Columns(number));
            };
            if token.is_empty() {
                return Err(TokenTableError::Token(number));
            }
            let user = UserInfo {
                username,
                uid,
                groups: columns
                    .next()
                    .unwrap_or_default()
                    .split(',')
                    .map(|group| group.trim().to_owned())
                    .filter(|group| !group.is_empty())
                    .collect(),
                extra: BTreeMap::new(),
            };
            table.insert(token, user.authenticated());
        }
        Ok(Self(table))
    }
}

impl TokenTable {
    /// Whose token it is.
    #[must_use]
    pub fn user(&self, token: &str) -> Option<&UserInfo> {
        self.0.get(token)
    }
}

/// Who sent a request with these headers on a connection with these certificates: the certificate counts before the
/// token, and a credential that is nobody's counts for nothing beside one that is somebody's.
///
/// # Errors
/// 401 where there are credentials and none is anybody's: a bad one is never taken for none.
pub(crate) async fn authenticate(
    shared: &Shared,
    chain: &[CertificateDer<'_>],
    headers: &HeaderMap,
) -> Result<UserInfo, Status> {
    let certified = match (&shared.client_cas, chain) {
        (Some(cas), [_, ..]) => cas.current().await.user(chain),
        _ => Ok(None),
    };
    if let Ok(Some(user)) = certified {
        return Ok(user.authenticated());
    }
    let refused = certified
        .inspect_err(|error| tracing::debug!(%error, "certificate"))
        .is_err();
    match bearer(headers) {
        Some(token) => {
            let (user, _) = token_user(shared, &token, &[ISSUER.to_owned()])
                .await
                .map_err(|error| {
                    tracing::debug!(error, "token");
                    Status::unauthorized()
                })?;
            Ok(user)
        }
        None if refused => Err(Status::unauthorized()),
        None => Ok(UserInfo::anonymous()),
    }
}

/// Whose token it is, and for which of these audiences. A token of the file is for the API server.
///
/// # Errors
/// It is nobody's; in words.
pub(crate) async fn token_user(
    shared: &Shared,
    token: &str,
    audiences: &[String],
) -> Result<(UserInfo, Vec<String>), String> {
    match service_accounts::authenticate(&shared.token_key, &shared.store, token, audiences) {
        Some(Ok((user, audiences))) => return Ok((user.authenticated(), audiences)),
        Some(Err(error)) => return Err(format!("[invalid bearer token, {error}]")),
        None => {}
    }
    let tokens = shared.tokens.current().await;
    match tokens.user(token) {
        Some(user) if audiences.iter().any(|audience| audience == ISSUER) => {
            Ok((user.clone(), vec![ISSUER.to_owned()]))
        }
        _ => Err("invalid bearer token".to_owned()),
    }
}

fn bearer(headers: &HeaderMap) -> Option<String> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let value = String::from_utf8_lossy(value.as_bytes());
        let (scheme, token) = value.trim().split_once(' ')?;
        return scheme
            .eq_ignore_ascii_case("bearer")
            .then(|| token.trim().to_owned())
            .filter(|token| !token.is_empty());
    }
    headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .find_map(|protocol| protocol.trim().strip_prefix(WEBSOCKET_BEARER))
        .and_then(|encoded| URL_SAFE_NO_PAD.decode(encoded).ok())
        .and_then(|token| String::from_utf8(token).ok())
}

/// The columns of one line of CSV; `None` when a quote is left open.
fn csv_columns(line: &str) -> Option<Vec<String>> {
    let mut columns = Vec::new();
    let mut column = String::new();
    let mut quoted = false;
    let mut chars = line.trim().chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                column.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => columns.push(std::mem::take(&mut column).trim().to_owned()),
            other => column.push(other),
        }
    }
    columns.push(column.trim().to_owned());
    (!quoted).then_some(columns)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const FILE: &str = "s3cret,alice,u-1,\"dev,ops\"\n\nplain,bob,u-2\n\
        sa,system:serviceaccount:prod:viewer,u-3,\"system:serviceaccounts,system:serviceaccounts:prod\"\n";

    #[rstest]
    #[case("s3cret", "alice", "u-1", &["dev", "ops", AUTHENTICATED])]
    #[case("plain", "bob", "u-2", &[AUTHENTICATED])]
    #[case("sa", "system:serviceaccount:prod:viewer", "u-3", &["system:serviceaccounts", "system:serviceaccounts:prod", AUTHENTICATED])]
    fn the_file_of_kube_apiserver_is_read(
        #[case] token: &str,
        #[case] name: &str,
        #[case] uid: &str,
        #[case] groups: &[&str],
    ) {
        let table: TokenTable = FILE.parse().unwrap();
        let user = table.user(token).unwrap();
        assert_eq!((user.username.as_str(), user.uid.as_str()), (name, uid));
        assert_eq!(user.groups, groups);
    }

    #[rstest]
    #[case("a,b", TokenTableError::Columns(1))]
    #[case("a,b,c\n,b,c", TokenTableError::Token(2))]
    #[case("a,b,c,\"d", TokenTableError::Quote(1))]
    fn a_bad_line_is_named(#[case] text: &str, #[case] error: TokenTableError) {
        assert_eq!(text.parse::<TokenTable>().unwrap_err(), error);
    }

    #[rstest]
    #[case::none(&[], None)]
    #[case::bearer(&[("authorization", "Bearer s3cret")], Some("s3cret"))]
    #[case::scheme_in_any_case(&[("authorization", "bEARER s3cret")], Some("s3cret"))]
    #[case::another_scheme(&[("authorization", "Basic czNjcmV0")], None)]
    #[case::empty(&[("authorization", "Bearer ")], None)]
    #[case::websocket(&[("sec-websocket-protocol", "v4.channel.k8s.io, base64url.bearer.authorization.k8s.io.czNjcmV0")], Some("s3cret"))]
    #[case::header_before_websocket(&[("authorization", "Bearer plain"), ("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.czNjcmV0")], Some("plain"))]
    fn tokens(#[case] headers: &[(&'static str, &'static str)], #[case] token: Option<&str>) {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect::<HeaderMap>();
        assert_eq!(bearer(&headers).as_deref(), token);
    }
}
