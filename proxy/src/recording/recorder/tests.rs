//! Recordings whose files fail: here a pipe that nobody reads, or that nobody can read any more, stands for the disk.

use std::{
    fs,
    io::{PipeReader, Read as _, Seek as _},
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
};

use futures_util::FutureExt as _;
use jiff::Timestamp;
use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};
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

/// A recording, of a stream from the server, into something that holds it.
struct Piped<D> {
    running: Running,
    disk: D,
    server: DuplexStream,
    client: Tapped<DuplexStream>,
    streams: TaskTracker,
    counts: RecordingCounts,
}

impl Piped<()> {
    fn with<D>(self, disk: D) -> Piped<D> {
        Piped {
            running: self.running,
            disk,
            server: self.server,
            client: self.client,
            streams: self.streams,
            counts: self.counts,
        }
    }
}

fn piped(required: bool) -> Piped<PipeReader> {
    let (disk, file) = std::io::pipe().unwrap();
    piped_into(File::from(OwnedFd::from(file)), required).with(disk)
}

fn piped_into(file: File, required: bool) -> Piped<()> {
    let cast = Cast::begin(file, &about(), Timestamp::UNIX_EPOCH).unwrap();
    let counts = Metrics::new().recording().clone();
    let recording = Recording {
        cast,
        unused: Unused::of_nothing(),
        ended: Arc::default(),
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
        disk: (),
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

/// A program that prints a few bytes at a time has them in one line, with one sum.
#[tokio::test(start_paused = true)]
async fn what_passes_within_milliseconds_is_written_at_once() {
    let mut piped = piped(true);
    for _ in 0..2 {
        for _ in 0..3 {
            piped.server.write_all(&SHOWN).await.unwrap();
            assert_eq!(read(&mut piped.client).await.unwrap(), SHOWN.len());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(piped.client);
    piped.running.end(End::Closed);
    piped.streams.close();
    piped.streams.wait().await;
    let mut file = String::new();
    piped.disk.read_to_string(&mut file).unwrap();
    let said = |letter: &str| file.matches(&format!(", \"{letter}\", ")).count();
    assert_eq!(file.matches("\"hihihi\"").count(), 2, "{file}");
    // After the head, each time that something was written, and the end.
    assert_eq!((said("o"), said("h")), (2, 4), "{file}");
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

/// A disk takes what it has room for, and then nothing: here memory that may not grow.
#[tokio::test]
async fn what_a_full_disk_took_in_part_is_cut_off() {
    const ROOM: u64 = 2 * 4096;
    let memory = memfd_create(c"recording", MFdFlags::MFD_ALLOW_SEALING).unwrap();
    let mut disk = File::from(memory);
    let mut piped = piped_into(disk.try_clone().unwrap(), true);
    disk.set_len(ROOM).unwrap();
    fcntl(&disk, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW)).unwrap();
    let shown = vec![b'x'; 3 * 4096];
    let length = u16::try_from(shown.len() + 1).unwrap().to_be_bytes();
    let message = [&[0x82, 126][..], &length, &[1], &shown].concat();
    piped.server.write_all(&message).await.unwrap();
    let mut passed = 0;
    while passed < message.len() {
        passed += read(&mut piped.client).await.unwrap();
    }
    piped.running.forbids().await;
    drop(piped.client);
    piped.streams.close();
    piped.streams.wait().await;
    let mut file = Vec::new();
    disk.rewind().unwrap();
    disk.read_to_end(&mut file).unwrap();
    let verified = cast::verify(&file[..]).unwrap();
    assert_eq!(verified.ending, cast::Ending::Missing { unproven: 0 });
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
async fn what_only_some_may_read_is_sealed_from_the_first_line_on() {
    let directory = tempfile::tempdir().unwrap();
    let recipient = "age14vqqauf09tdf2p0ykj8z3czwglqw4svrm5c7qzv5026kxfdw34hqgx6u65";
    let metrics = Metrics::new();
    let recordings = Recordings::open(directory.path().to_owned(), Clock::system(), &metrics);
    let recordings = recordings.await.unwrap().sealed_for(vec![recipient.parse().unwrap()]);
    let terms = Terms {
        required: true,
        stdin: false,
    };
    let begun = recordings.begin(about(), terms).await.unwrap();
    let file = fs::read_dir(directory.path()).unwrap().next().unwrap().unwrap();
    let text = fs::read_to_string(file.path()).unwrap();
    assert_eq!(
        cast::verify(text.as_bytes()).unwrap().sealing,
        cast::Sealing::Closed,
        "{text}"
    );
    assert!(text.contains(recipient) && !text.contains("command"), "{text}");
    drop(begun);
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

#[tokio::test]
async fn a_file_is_locked_for_as_long_as_it_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let metrics = Metrics::new();
    let recordings = Recordings::open(directory.path().to_owned(), Clock::system(), &metrics);
    let recordings = recordings.await.unwrap();
    let terms = Terms {
        required: true,
        stdin: false,
    };
    let begin = || recordings.begin(about(), terms);
    let only = || {
        let entry = fs::read_dir(directory.path()).unwrap().next();
        // It may be removed between the two.
        entry.and_then(|entry| File::open(entry.unwrap().path()).ok())
    };
    let unused = begin().await.unwrap();
    let file = only().unwrap();
    assert!(file.try_lock().is_err(), "it is begun");
    drop(unused);
    while only().is_some() {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        file.metadata().unwrap().nlink(),
        0,
        "and was removed before it was let go"
    );
    let streams = TaskTracker::new();
    let form = Form::Channels(Framing::WebSocket { closes: true });
    let running = begin().await.unwrap().start(Some(form), &streams).unwrap().unwrap();
    let file = only().unwrap();
    assert!(file.try_lock().is_err(), "it is written");
    running.end(End::Closed);
    recordings.ended().notified().await;
    assert!(file.try_lock().is_ok(), "it is at its end");
}
