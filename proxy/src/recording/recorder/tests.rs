//! Recordings whose files fail: here a pipe that nobody reads, or that nobody can read any more, stands for the disk.

use std::{
    io::{PipeReader, Read as _},
    os::fd::OwnedFd,
};

use futures_util::FutureExt as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::recording::{about::Asked, cast};

fn about() -> About {
    About {
        audit_id: "7a1e".to_owned(),
        session: format!("support/{}", "a.".repeat(120)),
        asked: Asked::of("command=cat&stdout=1"),
        ..About::default()
    }
}

/// A recording into a pipe, of a stream from the server.
struct Piped {
    running: Running,
    disk: PipeReader,
    server: DuplexStream,
    client: Tapped<DuplexStream>,
    streams: TaskTracker,
    counts: RecordingCounts,
}

fn piped(required: bool) -> Piped {
    let (disk, file) = std::io::pipe().unwrap();
    let cast = Cast::begin(File::from(OwnedFd::from(file)), &about(), Timestamp::UNIX_EPOCH).unwrap();
    let counts = Metrics::new().recording().clone();
    let recording = Recording {
        cast,
        unused: Unused(PathBuf::new()),
        is_forward: false,
        session: "support/alice".to_owned(),
        terms: Terms { required, stdin: false },
        counts: counts.clone(),
    };
    let streams = TaskTracker::new();
    let form = Form::Channels(Framing::WebSocket { closes: true });
    let running = recording.start(Some(form), &streams).unwrap().unwrap();
    let (server, ours) = duplex(1 << 20);
    let client = running.tap(Side::Server, ours);
    Piped {
        running,
        disk,
        server,
        client,
        streams,
        counts,
    }
}

const SHOWN: [u8; 5] = [0x82, 3, 1, b'h', b'i'];

/// Reads all that has come until something keeps it from that.
async fn read(client: &mut Tapped<DuplexStream>) -> io::Result<usize> {
    let mut some = [0; 1000];
    client.read(&mut some).await
}

#[tokio::test]
async fn what_passes_is_written() {
    let mut piped = piped(true);
    piped.server.write_all(&SHOWN).await.unwrap();
    assert_eq!(read(&mut piped.client).await.unwrap(), SHOWN.len());
    drop(piped.client);
    piped.running.end(End::Closed);
    piped.streams.close();
    piped.streams.wait().await;
    let mut file = Vec::new();
    piped.disk.read_to_end(&mut file).unwrap();
    let verified = cast::verify(&file[..]).unwrap();
    assert_eq!(verified.ending, cast::Ending::Whole("closed".to_owned()));
    assert!(String::from_utf8(file).unwrap().contains(r#", "o", "hi"]"#));
}

/// Nobody can write to a pipe without a reader.
#[tokio::test]
async fn a_stream_that_must_be_recorded_ends_where_the_disk_fails() {
    let mut piped = piped(true);
    drop(piped.disk);
    piped.server.write_all(&SHOWN).await.unwrap();
    // It passed before the disk was asked.
    assert_eq!(read(&mut piped.client).await.unwrap(), SHOWN.len());
    piped.running.forbids().await;
    piped.server.write_all(&SHOWN).await.unwrap();
    assert!(read(&mut piped.client).await.is_err(), "nothing more passes");
    assert_eq!(piped.counts.failures(RecordingFailure::Write), 1);
}

#[tokio::test]
async fn a_stream_that_need_not_be_recorded_goes_on_where_the_disk_fails() {
    let mut piped = piped(false);
    drop(piped.disk);
    for _ in 0..10 * QUEUE {
        piped.server.write_all(&SHOWN).await.unwrap();
        assert_eq!(read(&mut piped.client).await.unwrap(), SHOWN.len());
        tokio::task::yield_now().await;
    }
    drop(piped.client);
    assert!(piped.running.forbids().now_or_never().is_none());
    piped.running.end(End::Closed);
    piped.streams.close();
    piped.streams.wait().await;
    assert_eq!(piped.counts.failures(RecordingFailure::Write), 1);
}

/// The pipe's buffer, the queue and a batch are all that is waited for.
#[tokio::test]
async fn a_stream_waits_for_its_recording_only_where_it_must() {
    const MORE: usize = 1000;
    let message = [&[0x82, 126, 3, 0xe4, 1][..], &[b'x'; 995]].concat();
    for required in [true, false] {
        let mut piped = piped(required);
        let passing = async {
            for _ in 0..MORE {
                piped.server.write_all(&message).await.unwrap();
                assert_eq!(read(&mut piped.client).await.unwrap(), message.len());
            }
        };
        let passed = tokio::time::timeout(Duration::from_secs(5), passing).await;
        assert_eq!(passed.is_err(), required, "required: {required}");
        let slow = piped.counts.failures(RecordingFailure::Slow);
        assert_eq!(slow, u64::from(!required));
        // The thread that writes is let go.
        drop(piped.disk);
    }
}

#[tokio::test]
async fn files_are_the_agents_alone_and_never_others() {
    use std::os::unix::fs::PermissionsExt as _;
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("a/recordings");
    let metrics = Metrics::new();
    let now: Timestamp = "2026-11-22T14:05:01Z".parse().unwrap();
    let clock = Clock::in_step_with_timers(now);
    let recordings = Recordings::open(directory.clone(), clock, &metrics).await.unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&directory), 0o700);
    let terms = Terms {
        required: true,
        stdin: false,
    };
    let begun = recordings.begin(about(), terms).await.unwrap();
    let files: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap()).collect();
    assert_eq!(files.len(), 1);
    let name = files[0].file_name().into_string().unwrap();
    assert!(
        name.starts_with("20261122T140501Z_support_a.a.") && name.ends_with("_7a1e.cast"),
        "{name}"
    );
    assert!(name.len() <= 255);
    assert_eq!(mode(&files[0].path()), 0o600);
    // It says from the first who, and proves it.
    let bytes = fs::read(files[0].path()).unwrap();
    assert_eq!(cast::verify(&bytes[..]).unwrap().lines, 2);
    // What is there already is left as it is.
    let other = recordings.begin(about(), terms).await;
    assert!(matches!(other, Err(RecordingError::Begin { .. })), "{other:?}");
    assert_eq!(fs::read(files[0].path()).unwrap(), bytes);
    assert_eq!(metrics.recording().failures(RecordingFailure::Begin), 1);
    // And one that isn't started goes.
    drop(begun);
    let gone = async {
        while fs::read_dir(&directory).unwrap().next().is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
}

#[tokio::test]
async fn a_directory_that_cannot_be_used_is_said_at_the_start() {
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Recordings::open(file, Clock::system(), &Metrics::new())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("--recordings"), "{error}");
}
