//! The own CA in a directory: `ca.crt` is its certificate, for consumers to trust; `ca.key` is its key, which only the
//! agent may read.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    time::Duration,
};

use jiff::Timestamp;
use tokio::{task, time};

use super::{IfEmpty, Keeper};
use crate::{
    files::{FileWatch, ReadError, read_blocking},
    trust::{TrustError, authority::Authority},
};

/// The CA's certificate in its directory.
pub const CERTIFICATE: &str = "ca.crt";
/// The CA's key in its directory.
pub const KEY: &str = "ca.key";

const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// A directory, and what tells of changes in it.
pub(super) struct Followed {
    directory: Directory,
    watch: FileWatch,
}

impl Followed {
    /// Opens the CA, and follows it from then on: only then is the directory there to be watched.
    pub(super) async fn start(path: PathBuf, now: Timestamp) -> Result<(Self, Authority), TrustError> {
        let directory = Directory(path);
        let authority = directory.open(now, IfEmpty::Make).await?;
        let watch = FileWatch::new([directory.certificate(), directory.key()]).await;
        Ok((Self { directory, watch }, authority))
    }
}

impl Keeper for Followed {
    async fn open(&mut self, now: Timestamp) -> Result<Authority, TrustError> {
        self.directory.open(now, IfEmpty::Refuse).await
    }

    async fn changed(&mut self) {
        self.watch.changed().await;
    }
}

#[derive(Debug, Clone)]
struct Directory(PathBuf);

impl Directory {
    fn certificate(&self) -> PathBuf {
        self.0.join(CERTIFICATE)
    }

    fn key(&self) -> PathBuf {
        self.0.join(KEY)
    }

    /// The CA of now: read, made if there is none, renewed if it is time. One process at a time.
    async fn open(&self, now: Timestamp, if_empty: IfEmpty) -> Result<Authority, TrustError> {
        let lock = self.lock().await?;
        let directory = self.clone();
        task::spawn_blocking(move || {
            let opened = directory.open_locked(now, if_empty);
            drop(lock);
            opened
        })
        .await
        .map_err(|_| TrustError::Stopped)?
    }

    async fn lock(&self) -> Result<File, TrustError> {
        let deadline = time::Instant::now() + LOCK_PATIENCE;
        loop {
            let directory = self.clone();
            let attempt = task::spawn_blocking(move || directory.try_lock())
                .await
                .map_err(|_| TrustError::Stopped)?;
            match attempt.map_err(|source| self.unusable(source))? {
                Some(lock) => return Ok(lock),
                None if time::Instant::now() >= deadline => return Err(TrustError::Locked(self.0.clone())),
                None => time::sleep(LOCK_RETRY).await,
            }
        }
    }

    fn try_lock(&self) -> io::Result<Option<File>> {
        fs::create_dir_all(&self.0)?;
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(self.0.join(".lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn open_locked(&self, now: Timestamp, if_empty: IfEmpty) -> Result<Authority, TrustError> {
        if let (Err(ReadError::Missing(certificate)), IfEmpty::Make) = (read_blocking(&self.certificate()), if_empty) {
            // A key alone is what a crash between the two writes leaves: nobody trusts it yet, so it is replaced.
            let made = Authority::make(now)?;
            self.write(KEY, made.key.as_bytes(), 0o600)?;
            self.write(CERTIFICATE, made.certificate.as_bytes(), 0o644)?;
            tracing::info!(path = %certificate.display(), "made a CA; distribute its certificate to the pods that are to trust it");
        }
        let authority = self.parse()?;
        if authority.wants_renewal(now) {
            let renewed = authority.renewed(now)?;
            self.write(CERTIFICATE, renewed.as_bytes(), 0o644)?;
            tracing::warn!(
                path = %self.certificate().display(), old_expiry = %authority.expiry(),
                "renewed the CA's certificate; distribute it before the old one expires"
            );
            return self.parse();
        }
        if authority.expiry() <= now {
            return Err(TrustError::Expired {
                path: self.certificate(),
                expiry: authority.expiry(),
            });
        }
        Ok(authority)
    }

    fn parse(&self) -> Result<Authority, TrustError> {
        let (certificate_path, key_path) = (self.certificate(), self.key());
        let certificate = read_blocking(&certificate_path)?;
        let key = match read_blocking(&key_path) {
            Err(ReadError::Missing(key)) => {
                return Err(TrustError::KeyGone {
                    key,
                    certificate: certificate_path,
                });
            }
            read => read?,
        };
        Authority::parse((&certificate_path, &certificate), (&key_path, &key))
    }

    /// Whole or not at all: a reader, or a crash, never sees half a file.
    fn write(&self, name: &str, contents: &[u8], mode: u32) -> Result<(), TrustError> {
        let write = || {
            let next = self.0.join(format!(".{name}.next"));
            match fs::remove_file(&next) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&next)?;
            file.write_all(contents)?;
            file.sync_all()?;
            fs::rename(&next, self.0.join(name))?;
            File::open(&self.0)?.sync_all()
        };
        write().map_err(|source| self.unusable(source))
    }

    fn unusable(&self, source: io::Error) -> TrustError {
        TrustError::Directory {
            path: self.0.clone(),
            source,
        }
    }
}
