//! The agent's own log, on standard error: its form, and its levels, which may change while it runs. What is logged is for
//! each module to say; the audit log is another.

use std::{fmt, io, path::PathBuf, sync::Arc};

use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter,
    filter::ParseError,
    fmt::MakeWriter,
    reload::{self, Handle},
};

use crate::{
    cli::LogFormat,
    files::{FileWatch, ReadError, read},
};

/// Where `RUST_LOG` says nothing.
const DEFAULT: &str = "info";
/// What SIGUSR1 adds.
const VERBOSE: &str = "understudy=debug";
/// kube's client logs an answer that it can't read as a whole, and that may be a Secret (invariant 3). What else kube
/// has to say of a watch, we say; as of what `object_store` tries again.
const NEVER: [&str; 4] = [
    "kube_client=off",
    "kube_client::client=off",
    "kube_runtime=off",
    "object_store=off",
];

/// Why the levels can't be changed.
#[derive(Debug, thiserror::Error)]
pub enum LevelsError {
    /// They aren't levels.
    #[error(
        "the log's levels {directives:?} can't be understood ({source}): write them as in RUST_LOG, `info,understudy=debug` say"
    )]
    Parse {
        /// What was asked for.
        directives: String,
        /// Where it is wrong.
        source: ParseError,
    },
    /// The log has gone.
    #[error("the log's levels can't be changed any more ({0})")]
    Gone(#[from] reload::Error),
    /// The file can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The file isn't text.
    #[error("{0} isn't text: write levels as in RUST_LOG")]
    NotText(PathBuf),
}

/// The log's levels. Cheap to clone.
#[derive(Clone)]
pub struct Levels {
    /// Those that the agent was started with.
    configured: Arc<str>,
    put: Arc<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>,
}

impl fmt::Debug for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Levels")
            .field("configured", &self.configured)
            .finish_non_exhaustive()
    }
}

/// Starts the log. Its levels are those of `RUST_LOG`, `info` where that says nothing, or nothing that can be understood.
pub fn start(format: LogFormat) -> Levels {
    let configured = std::env::var("RUST_LOG")
        .ok()
        .filter(|directives| !directives.trim().is_empty() && filter(directives).is_ok())
        .unwrap_or_else(|| DEFAULT.to_owned());
    let (log, levels) = build(format, &configured, io::stderr);
    // Only a second log in one process fails, and then the first goes on.
    let _ = tracing::subscriber::set_global_default(log);
    levels
}

fn build<W>(format: LogFormat, configured: &str, writer: W) -> (Box<dyn Subscriber + Send + Sync>, Levels)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let initial = filter(configured).unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let log = tracing_subscriber::fmt().with_env_filter(initial).with_writer(writer);
    match format {
        LogFormat::Text => {
            let ansi = io::IsTerminal::is_terminal(&io::stderr());
            let log = log.with_ansi(ansi).with_filter_reloading();
            let levels = Levels::new(configured, log.reload_handle());
            (Box::new(log.finish()), levels)
        }
        LogFormat::Json => {
            let log = log.json().with_filter_reloading();
            let levels = Levels::new(configured, log.reload_handle());
            (Box::new(log.finish()), levels)
        }
    }
}

fn filter(directives: &str) -> Result<EnvFilter, ParseError> {
    let filter = EnvFilter::builder().parse(directives)?;
    Ok(NEVER
        .iter()
        .filter_map(|directive| directive.parse().ok())
        .fold(filter, EnvFilter::add_directive))
}

impl Levels {
    fn new<S: 'static>(configured: &str, handle: Handle<EnvFilter, S>) -> Self {
        Self {
            configured: configured.into(),
            put: Arc::new(move |filter| handle.reload(filter)),
        }
    }

    /// Puts levels in force, written as in `RUST_LOG`; where there are none, those that the agent was started with.
    ///
    /// # Errors
    /// If they can't be understood: those that were in force stay.
    pub fn set(&self, directives: &str) -> Result<(), LevelsError> {
        let wanted = match directives.trim() {
            "" => &self.configured,
            wanted => wanted,
        };
        let filter = filter(wanted).map_err(|source| LevelsError::Parse {
            directives: wanted.to_owned(),
            source,
        })?;
        (self.put)(filter)?;
        tracing::info!(levels = wanted, "the log's levels were changed");
        Ok(())
    }

    /// More: what the agent itself does, at debug level.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub fn raise(&self) -> Result<(), LevelsError> {
        self.set(&format!("{},{VERBOSE}", self.configured))
    }

    /// Keeps the levels as the file says, now and when it changes. One that is missing says nothing.
    pub async fn follow(self, path: PathBuf) {
        let mut watch = FileWatch::new([&path]).await;
        let mut last = String::new();
        loop {
            match read_levels(&path).await {
                Ok(levels) if levels == last => {}
                Ok(levels) => {
                    if let Err(error) = self.set(&levels) {
                        tracing::error!(%error, file = %path.display(), "the log's levels stay as they were");
                    }
                    last = levels;
                }
                Err(error) => tracing::error!(%error, "the log's levels stay as they were"),
            }
            watch.changed().await;
        }
    }
}

async fn read_levels(path: &PathBuf) -> Result<String, LevelsError> {
    match read(path).await {
        Ok(bytes) => {
            let text = std::str::from_utf8(&bytes).map_err(|_| LevelsError::NotText(path.clone()))?;
            Ok(text.trim().to_owned())
        }
        Err(ReadError::Missing(_)) => Ok(String::new()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        sync::{Mutex, PoisonError},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Page {
        fn take(&self) -> String {
            let written = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
            String::from_utf8(written).unwrap()
        }
    }

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// One after the other: what is asked of each place that logs is kept for the process as a whole.
    #[test]
    fn levels_change_while_it_runs() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let page = Page::default();
            let writer = page.clone();
            let (log, levels) = build(format, "info", move || writer.clone());
            tracing::subscriber::with_default(log, || levels_change(&page, &levels));
        }
    }

    fn levels_change(page: &Page, levels: &Levels) {
        let say = || {
            tracing::debug!("a detail");
            tracing::debug!(target: "kube_client::client", "an answer that holds a secret");
            page.take()
        };
        assert!(!say().contains("a detail"));
        levels.raise().unwrap();
        let raised = say();
        assert!(raised.contains("a detail"), "{raised}");
        // What is in force stays when what comes can't be understood.
        levels.set("understudy=loud").unwrap_err();
        assert!(say().contains("a detail"));
        levels.set("").unwrap();
        assert!(!say().contains("a detail"));
        levels.set("trace").unwrap();
        let all = say();
        assert!(all.contains("a detail") && !all.contains("secret"), "{all}");
    }

    #[tokio::test]
    async fn a_file_says_which() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("level");
        assert_eq!(read_levels(&path).await.unwrap(), "");
        std::fs::write(&path, "understudy=debug\n").unwrap();
        assert_eq!(read_levels(&path).await.unwrap(), "understudy=debug");
        std::fs::write(&path, [0xff]).unwrap();
        assert!(matches!(read_levels(&path).await, Err(LevelsError::NotText(_))));
    }
}
