//! The operators' socket in the run directory. Of several agents on a node the one that served last has it.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use nix::unistd::geteuid;
use tokio::net::{UnixListener, UnixStream};

/// The socket's name in the run directory.
pub const SOCKET: &str = "operator.sock";

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}: give --run-dir a directory on the node that this agent can write to")]
pub struct SocketError {
    path: PathBuf,
    source: io::Error,
}

/// The socket, listened on; it goes with this, unless another agent's has taken its place.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    listener: UnixListener,
    inode: u64,
}

impl Socket {
    /// Takes the place of an earlier agent's. At no time does the path lead nowhere, nor is it there for others than its
    /// user.
    ///
    /// # Errors
    /// Where it can't be bound.
    pub fn bind(run_dir: &Path) -> Result<Self, SocketError> {
        let path = run_dir.join(SOCKET);
        let temporary = run_dir.join(format!("{SOCKET}.{}", std::process::id()));
        let bind = || -> io::Result<(UnixListener, u64)> {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(run_dir)?;
            remove_if_there(&temporary)?;
            let listener = UnixListener::bind(&temporary)?;
            fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
            let inode = fs::symlink_metadata(&temporary)?.ino();
            fs::rename(&temporary, &path)?;
            Ok((listener, inode))
        };
        match bind() {
            Ok((listener, inode)) => Ok(Self { path, listener, inode }),
            Err(source) => Err(SocketError { path, source }),
        }
    }

    /// The next client; none where it is another user's.
    pub(super) async fn accept(&self) -> io::Result<Option<UnixStream>> {
        let (stream, _) = self.listener.accept().await?;
        let is_own = stream
            .peer_cred()
            .is_ok_and(|peer| peer.uid() == geteuid().as_raw() || peer.uid() == 0);
        Ok(is_own.then_some(stream))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Another agent's, if one has come.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _gone = fs::remove_file(&self.path);
        }
    }
}

/// Removes what a killed agent has left.
///
/// # Errors
/// Where it can't be removed. That it isn't there is no error.
pub fn remove(run_dir: &Path) -> Result<(), SocketError> {
    let path = run_dir.join(SOCKET);
    remove_if_there(&path).map_err(|source| SocketError { path, source })
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_agents_socket_stays_when_the_first_goes() {
        let directory = tempfile::tempdir().unwrap();
        let run_dir = directory.path().join("run");
        let first = Socket::bind(&run_dir).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&run_dir), mode(&run_dir.join(SOCKET))), (0o700, 0o600));
        let second = Socket::bind(&run_dir).unwrap();
        drop(first);
        let (accepted, dialled) = tokio::join!(second.accept(), UnixStream::connect(run_dir.join(SOCKET)));
        assert!(dialled.is_ok() && accepted.unwrap().is_some());
        drop(second);
        assert_eq!(fs::read_dir(&run_dir).unwrap().count(), 0);
        remove(&run_dir).unwrap();
    }

    #[tokio::test]
    async fn what_a_killed_agent_left_is_replaced_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        std::mem::forget(Socket::bind(directory.path()).unwrap());
        drop(Socket::bind(directory.path()).unwrap());
        std::mem::forget(Socket::bind(directory.path()).unwrap());
        remove(directory.path()).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
