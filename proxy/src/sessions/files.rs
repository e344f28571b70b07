//! The source that reads sessions from YAML files: one file, or every `*.yaml`, `*.yml` and `*.json` in a
//! directory. Several documents may stand in one file.
//!
//! A file that can't be read as a whole is reported on itself. The sessions that it declared before are
//! refused from then on, with their pods still intercepted, so that a slip of the pen never turns a pod loose;
//! all others stand.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use secrecy::zeroize::Zeroizing;

use super::{
    Declared,
    manifest::{Envelope, PodManifest, without_values},
    spec::{Policy, SessionSpec, SpecError},
};
use crate::pod::{SessionId, SessionIdError, WantedPod};

/// The group and version that a document must name.
pub const API_VERSION: &str = "understudy.dev/v1alpha1";

/// Reads session files, remembering what each declared last.
#[derive(Debug)]
pub struct SessionFiles {
    path: PathBuf,
    policy: Policy,
    last_good: BTreeMap<PathBuf, Vec<(SessionId, Vec<WantedPod>)>>,
}

/// What one reading found.
#[derive(Debug, Default)]
pub struct Reading {
    /// The sessions declared, refused ones among them.
    pub sessions: Vec<Declared>,
    /// What is wrong, with files as a whole and with sessions, a line each, for the log.
    pub complaints: Vec<FileError>,
}

/// What is wrong with a file or with one of its documents.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It can't be read.
    #[error("{path}: can't be read: {source}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It isn't YAML of the form that is expected.
    #[error("{path}: {reason}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        reason: String,
    },
    /// A document is of another kind.
    #[error("{path}: apiVersion {api_version:?}, kind {kind:?}: expected {API_VERSION}, Session")]
    Kind {
        /// The file.
        path: PathBuf,
        /// As it says.
        api_version: String,
        /// As it says.
        kind: String,
    },
    /// A document's name isn't one.
    #[error("{path}: {source}")]
    Name {
        /// The file.
        path: PathBuf,
        /// Which part.
        source: SessionIdError,
    },
    /// A session is refused.
    #[error("session {session}: {source}")]
    Session {
        /// The session.
        session: SessionId,
        /// Why.
        source: Box<SpecError>,
    },
}

impl Reading {
    /// Whether every file was understood as far as which pods it names.
    #[must_use]
    pub fn names_every_pod(&self) -> bool {
        self.complaints
            .iter()
            .all(|complaint| matches!(complaint, FileError::Session { .. }))
    }
}

impl SessionFiles {
    /// A source that reads `path`, a file or a directory.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            policy: Policy::default(),
            last_good: BTreeMap::new(),
        }
    }

    /// The same, reading sessions under what the operator allows.
    #[must_use]
    pub fn under(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// What it reads.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads everything anew. Blocks on the file system: call it off the async threads.
    ///
    /// # Errors
    /// If the directory can't be listed; then nothing is known, and what was in force should stand.
    pub fn read(&mut self) -> Result<Reading, FileError> {
        let files = self.list()?;
        let mut reading = Reading::default();
        let mut remembered = BTreeMap::new();
        for path in files {
            let declared = match read_file(&path, self.policy) {
                Ok(declared) => declared,
                Err(error) => {
                    let reason = error.to_string();
                    reading.complaints.push(error);
                    self.refuse_last_good(&path, &reason)
                }
            };
            remembered.insert(
                path.clone(),
                declared.iter().map(|one| (one.id.clone(), one.pods.clone())).collect(),
            );
            reading.sessions.extend(declared);
        }
        self.last_good = remembered;
        refuse_repeated(&mut reading.sessions);
        for declared in &reading.sessions {
            if let Err(source) = &declared.spec {
                reading.complaints.push(FileError::Session {
                    session: declared.id.clone(),
                    source: Box::new(source.clone()),
                });
            }
        }
        Ok(reading)
    }

    fn list(&self) -> Result<Vec<PathBuf>, FileError> {
        let refused = |source| FileError::Read {
            path: self.path.clone(),
            source,
        };
        if !std::fs::metadata(&self.path).map_err(refused)?.is_dir() {
            return Ok(vec![self.path.clone()]);
        }
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(refused)? {
            let path = entry.map_err(refused)?.path();
            let hidden = path
                .file_name()
                .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
            let wanted = path
                .extension()
                .is_some_and(|kind| kind == "yaml" || kind == "yml" || kind == "json");
            if wanted && !hidden {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    fn refuse_last_good(&self, path: &Path, reason: &str) -> Vec<Declared> {
        self.last_good
            .get(path)
            .into_iter()
            .flatten()
            .map(|(id, pods)| Declared {
                id: id.clone(),
                pods: pods.clone(),
                spec: Err(SpecError::File {
                    path: path.to_owned(),
                    reason: reason.to_owned(),
                }),
                incarnation: None,
                last_used: None,
            })
            .collect()
    }
}

fn read_file(path: &Path, policy: Policy) -> Result<Vec<Declared>, FileError> {
    // It may hold tokens, and is wiped when they have been taken out of it.
    let text = std::fs::read_to_string(path).map(Zeroizing::new);
    let text = text.map_err(|source| FileError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(path, &text, policy)
}

/// What a file with this text declares; `path` is for what is said of it.
pub(crate) fn parse(path: &Path, text: &str, policy: Policy) -> Result<Vec<Declared>, FileError> {
    // Snippets of the source would show tokens.
    let options = serde_saphyr::options! { with_snippet: false };
    let documents: Vec<Envelope> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| FileError::Parse {
            path: path.to_owned(),
            reason: without_values(&error.to_string()),
        })?;
    documents
        .into_iter()
        .map(|document| declare(path, document, policy))
        .collect()
}

fn declare(path: &Path, document: Envelope, policy: Policy) -> Result<Declared, FileError> {
    if document.api_version != API_VERSION || document.kind != "Session" {
        return Err(FileError::Kind {
            path: path.to_owned(),
            api_version: document.api_version,
            kind: document.kind,
        });
    }
    let id =
        SessionId::new(&document.metadata.namespace, &document.metadata.name).map_err(|source| FileError::Name {
            path: path.to_owned(),
            source,
        })?;
    let pods: Vec<WantedPod> = document.pods.into_iter().map(|pod| wanted(&id, pod)).collect();
    Ok(Declared {
        spec: SessionSpec::parse(document.spec, policy).and_then(|spec| tells_pods_apart(spec, &pods)),
        pods,
        id,
        incarnation: None,
        last_used: None,
    })
}

/// A pod's token is known by the pod's UID.
fn tells_pods_apart(spec: SessionSpec, pods: &[WantedPod]) -> Result<SessionSpec, SpecError> {
    let has_uid = |pod: &WantedPod| pod.uid.as_ref().is_some_and(|uid| !uid.is_empty());
    if spec.require_pod_token && !pods.iter().all(has_uid) {
        return Err(SpecError::Missing {
            field: "pods.uid",
            method: "spec.requirePodToken",
        });
    }
    Ok(spec)
}

fn wanted(session: &SessionId, pod: PodManifest) -> WantedPod {
    let cgroup: PathBuf = pod.cgroup.strip_prefix("/").unwrap_or(&pod.cgroup).to_owned();
    let name = pod.name.unwrap_or_else(|| cgroup.display().to_string());
    WantedPod {
        cgroup,
        name: Arc::from(name),
        session: session.clone(),
        uid: pod.uid.map(Arc::from),
        service_account: pod.service_account_name.map(Arc::from),
    }
}

/// A session declared twice is refused altogether: which one was meant can't be known. A pod claimed twice
/// stays with the session that comes first by name, which is refused, as is the other.
fn refuse_repeated(sessions: &mut Vec<Declared>) {
    let mut by_id: HashMap<SessionId, usize> = HashMap::new();
    let mut kept: Vec<Declared> = Vec::new();
    for declared in sessions.drain(..) {
        if let Some(&first) = by_id.get(&declared.id) {
            kept[first].spec = Err(SpecError::Twice(format!("session {}", declared.id)));
            kept[first].pods.extend(declared.pods);
        } else {
            by_id.insert(declared.id.clone(), kept.len());
            kept.push(declared);
        }
    }
    let mut claims: HashMap<PathBuf, usize> = HashMap::new();
    for index in 0..kept.len() {
        let mut own = HashSet::new();
        let (before, rest) = kept.split_at_mut(index);
        let declared = &mut rest[0];
        let mut twice = None;
        declared.pods.retain(|pod| {
            if !own.insert(pod.cgroup.clone()) {
                return false;
            }
            match claims.get(&pod.cgroup) {
                Some(&first) => {
                    let error = SpecError::Twice(format!("pod {}", pod.cgroup.display()));
                    before[first].spec = Err(error.clone());
                    twice = Some(error);
                    false
                }
                None => true,
            }
        });
        if let Some(error) = twice {
            declared.spec = Err(error);
        }
        for pod in &declared.pods {
            claims.insert(pod.cgroup.clone(), index);
        }
    }
    *sessions = kept;
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: &str = "
apiVersion: understudy.dev/v1alpha1
kind: Session
metadata: {namespace: support, name: alice}
spec:
  authMethod: gateway-kubernetes-auth
  impersonate: {namespace: prod, serviceAccountName: viewer}
  expiresAt: 2030-01-01T00:00:00Z
pods:
  - {name: shell-0, cgroup: /kubepods/podA}
";

    fn directory(files: &[(&str, &str)]) -> (tempfile::TempDir, SessionFiles) {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        let source = SessionFiles::new(directory.path().to_owned());
        (directory, source)
    }

    #[test]
    fn reads_every_document_of_every_file() {
        let bob = ALICE.replace("alice", "bob").replace("podA", "podB");
        let carol = ALICE.replace("alice", "carol").replace("podA", "podC");
        let (_directory, mut source) = directory(&[
            ("a.yaml", &format!("{ALICE}---{bob}")),
            ("b.yml", &carol),
            ("notes.txt", "not a session"),
        ]);
        let reading = source.read().unwrap();
        assert!(reading.complaints.is_empty(), "{:?}", reading.complaints);
        let ids: Vec<_> = reading.sessions.iter().map(|one| one.id.to_string()).collect();
        assert_eq!(ids, ["support/alice", "support/bob", "support/carol"]);
        assert_eq!(reading.sessions[0].pods[0].cgroup, Path::new("kubepods/podA"));
        assert_eq!(&*reading.sessions[0].pods[0].name, "shell-0");
    }

    #[test]
    fn a_bad_file_is_reported_and_its_pods_stay() {
        let bob = ALICE.replace("alice", "bob").replace("podA", "podB");
        let (directory, mut source) = directory(&[("a.yaml", ALICE), ("b.yaml", &bob)]);
        source.read().unwrap();
        std::fs::write(directory.path().join("a.yaml"), "apiVersion: [").unwrap();
        // Twice, for the memory of the last good state must outlive the first bad reading.
        for _ in 0..2 {
            let reading = source.read().unwrap();
            assert!(reading.sessions[0].spec.is_err());
            assert_eq!(reading.sessions[0].pods[0].cgroup, Path::new("kubepods/podA"));
            assert!(reading.sessions[1].spec.is_ok());
            assert!(reading.complaints[0].to_string().contains("a.yaml"));
        }
    }

    #[test]
    fn a_bad_spec_leaves_its_pods_intercepted() {
        let (_directory, mut source) = directory(&[("a.yaml", &ALICE.replace("gateway-kubernetes-auth", "magic"))]);
        let reading = source.read().unwrap();
        assert_eq!(reading.sessions[0].pods.len(), 1);
        let complaint = reading.complaints[0].to_string();
        assert!(
            complaint.contains("session support/alice: spec.authMethod \"magic\" is unknown"),
            "{complaint}"
        );
    }

    #[test]
    fn a_pods_token_is_asked_for_where_its_uid_is_known() {
        let asking = ALICE.replace("  expiresAt", "  requirePodToken: true\n  expiresAt");
        for (text, uid, accepted) in [
            (asking.clone(), None, false),
            (
                asking.replace("name: shell-0", "name: shell-0, uid: \"\""),
                Some(""),
                false,
            ),
            (
                asking.replace("name: shell-0", "name: shell-0, uid: 0b7c-11"),
                Some("0b7c-11"),
                true,
            ),
            (ALICE.to_owned(), None, true),
        ] {
            let (_directory, mut source) = directory(&[("a.yaml", &text)]);
            let reading = source.read().unwrap();
            assert_eq!(reading.sessions[0].pods[0].uid.as_deref(), uid);
            let said = reading.sessions[0].spec.as_ref().map_err(ToString::to_string);
            assert_eq!(said.is_ok(), accepted, "{text}");
            if let Err(said) = said {
                assert_eq!(said, "pods.uid is missing: spec.requirePodToken needs it");
            }
        }
    }

    #[test]
    fn what_is_declared_twice_is_refused() {
        let bob = ALICE.replace("alice", "bob");
        let (_directory, mut source) = directory(&[("a.yaml", ALICE), ("b.yaml", &bob)]);
        let reading = source.read().unwrap();
        assert!(reading.sessions.iter().all(|one| one.spec.is_err()));
        assert_eq!(reading.sessions.iter().map(|one| one.pods.len()).sum::<usize>(), 1);

        let (_directory, mut source) = directory(&[("a.yaml", ALICE), ("b.yaml", ALICE)]);
        let reading = source.read().unwrap();
        assert_eq!(reading.sessions.len(), 1);
        assert!(matches!(reading.sessions[0].spec, Err(SpecError::Twice(_))));
        assert!(
            reading.complaints[0].to_string().contains("support/alice"),
            "{:?}",
            reading.complaints
        );
    }

    #[test]
    fn no_token_is_shown_by_a_parse_error() {
        let head = "apiVersion: understudy.dev/v1alpha1\nkind: Session\nmetadata: {name: a, namespace: b}\n";
        for slip in [
            "spec: {token: very-secret-token\n",
            "spec: {token: [very-secret-token]}\n",
            "spec: very-secret-token\n",
            "spec: {expiresAt: very-secret-token}\n",
            "spec: {expiresAt: '2030-01-01[very-secret-token]0'}\n",
            "spec: {authMethod: very-secret-token-of-some-length-as-they-are}\n",
            "spec: {very-secret-token-of-some-length-as-they-are: x}\n",
            "pods: very-secret-token\n",
        ] {
            let said = match parse(Path::new("a.yaml"), &format!("{head}{slip}"), Policy::default()) {
                Err(error) => format!("{error} {error:?}"),
                Ok(declared) => {
                    let error = declared[0].spec.as_ref().unwrap_err();
                    format!("{error} {error:?}")
                }
            };
            assert!(!said.contains("very-secret"), "{said}");
        }
    }

    #[test]
    fn a_missing_directory_is_an_error() {
        assert!(SessionFiles::new("/nonexistent/sessions".into()).read().is_err());
    }
}
