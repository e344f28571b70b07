//! `own-ca`: a CA made once and kept in a directory, and a serving certificate under it that lives in memory, is
//! renewed before it ends, and is issued anew when the addresses to serve change.
//!
//! `ca.crt` is the CA's certificate, for consumers to trust; `ca.key` is its key, which only the agent may read.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    time::Duration,
};

use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use tokio::{sync::watch, task, time};

pub use super::authority::ServedNames;
use super::{
    TrustError,
    authority::{Authority, Issued},
    serving::ServingCert,
};
use crate::{
    clock::Clock,
    files::{FileWatch, ReadError, read_blocking},
};

/// The CA's certificate in its directory.
pub const CERTIFICATE: &str = "ca.crt";
/// The CA's key in its directory.
pub const KEY: &str = "ca.key";

/// How often it is looked whether a renewal is due: often, because a timer doesn't notice that the clock was set.
const LOOK: Duration = Duration::from_hours(1);
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// Serves under the CA in `directory`, which is made there if there is none yet, and keeps the certificate naming
/// what `names` says. What goes wrong later is logged and counted in `failures`, and the certificate in service stays.
///
/// Several agents may start on one directory at once: one makes the CA, all use it.
///
/// # Errors
/// If the directory can't be used, or what is in it isn't a CA and its key.
pub async fn serve_own_ca(
    directory: impl Into<PathBuf>,
    mut names: watch::Receiver<ServedNames>,
    clock: Clock,
    failures: Counter,
) -> Result<ServingCert, TrustError> {
    let directory = Directory(directory.into());
    let mut authority = directory.open(clock.now(), IfEmpty::Make).await?;
    let mut watch = FileWatch::new([directory.certificate(), directory.key()]).await;
    let mut served = names.borrow_and_update().clone();
    let Issued { serving, mut renew_at } = authority.issue(&served, clock.now())?;
    let (publish, serving) = watch::channel(serving);

    tokio::spawn(async move {
        let complain = |error: TrustError| {
            failures.inc();
            tracing::error!(%error, "the own CA cannot be used as it is now; the last good certificate stays");
        };
        loop {
            tokio::select! {
                () = watch.changed() => {}
                () = changed(&mut names) => {}
                () = time::sleep(LOOK) => {}
                () = publish.closed() => return,
            }
            let now = clock.now();
            match directory.open(now, IfEmpty::Refuse).await {
                Ok(found) if found.is_same(&authority) => {}
                Ok(found) => {
                    authority = found;
                    renew_at = now;
                }
                Err(error) => complain(error),
            }
            let wanted = names.borrow_and_update().clone();
            if now < renew_at && wanted == served {
                continue;
            }
            match authority.issue(&wanted, now) {
                Ok(issued) => {
                    tracing::info!(expiry = %issued.serving.expiry, names = ?wanted, "serving a new certificate of the own CA");
                    renew_at = issued.renew_at;
                    served = wanted;
                    publish.send_replace(issued.serving);
                }
                Err(error) => complain(error),
            }
        }
    });
    Ok(ServingCert::new(serving))
}

/// A dropped sender isn't a change.
async fn changed(names: &mut watch::Receiver<ServedNames>) {
    if names.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What to do with a directory without a CA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IfEmpty {
    Make,
    // Under a running agent a CA that vanished is a mishap: a new one would be trusted by nobody.
    Refuse,
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
