//! The unix socket by which whoever measures orders events and asks for counts: a word a line, and a line of JSON back.

use std::{path::Path, sync::Arc};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
};

use super::Shared;

pub(crate) fn listen(path: &Path) -> Result<UnixListener> {
    // One of a run that was killed; bind says what is wrong with anything else.
    let _left_over = std::fs::remove_file(path);
    UnixListener::bind(path).with_context(|| format!("listening on {}", path.display()))
}

pub(crate) async fn serve(listener: UnixListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            // Whoever asked is gone.
            let _gone = converse(stream, &shared).await;
        });
    }
}

async fn converse(stream: UnixStream, shared: &Shared) -> Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    while let Some(line) = lines.next_line().await? {
        let answer = format!("{}\n", answer(&line, shared)?);
        writer.write_all(answer.as_bytes()).await?;
    }
    Ok(())
}

fn answer(line: &str, shared: &Shared) -> Result<Value> {
    Ok(match line.trim() {
        "event" => {
            shared.events.send()?;
            json!({ "watches": shared.counts.watches })
        }
        "counts" => serde_json::to_value(&shared.counts)?,
        other => json!({ "error": format!("`{other}` is neither `event` nor `counts`") }),
    })
}
