//! The queue on disk, against agents that are killed and disks that are full.

use super::*;
use crate::audit::sink::{Pending, Sink as _};

const ROOMY: u64 = 1 << 20;

fn open(directory: &Path, limit: u64) -> Spool {
    fs::create_dir_all(directory).unwrap();
    Spool::open(directory, limit, Gauge::default()).unwrap().unwrap()
}

fn append(appender: &mut Appender, text: &str) {
    Pending::of(text.as_bytes()).write_to(appender).unwrap();
}

fn lines(batch: &Batch) -> Vec<&str> {
    std::str::from_utf8(&batch.lines).unwrap().lines().collect()
}

/// Reads all that there is, in batches of `most`.
fn drain(spool: &Spool, most: usize) -> Vec<String> {
    let mut read = Vec::new();
    while let Some(batch) = spool.read(most, 64).unwrap() {
        assert_eq!(batch.count, lines(&batch).len());
        assert!(batch.count <= most);
        read.extend(lines(&batch).into_iter().map(str::to_owned));
        spool.taken(&batch).unwrap();
    }
    read
}

fn numbered(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| format!("line {n}")).collect()
}

#[test]
fn lines_come_out_in_order_and_once() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(&directory.path().join("queue"), 4096);
    let mut appender = spool.appender();
    let mut read = Vec::new();
    for n in 0..1000 {
        append(&mut appender, &format!("line {n}\n"));
        if n % 7 == 0 {
            read.extend(drain(&spool, 3));
        }
    }
    read.extend(drain(&spool, 100));
    assert_eq!(read, numbered(0..1000));
    let files = fs::read_dir(directory.path().join("queue")).unwrap();
    let left = files.filter(|file| number_of(&file.as_ref().unwrap().path()).is_some());
    assert_eq!(left.count(), 1, "what was read is removed");
}

#[test]
fn what_was_not_taken_is_read_again_by_the_next_agent() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(directory.path(), ROOMY);
    append(&mut spool.appender(), "a\nb\nc\nd\n");
    let batch = spool.read(2, 64).unwrap().unwrap();
    assert_eq!(lines(&batch), ["a", "b"]);
    spool.taken(&batch).unwrap();
    assert_eq!(lines(&spool.read(1, 64).unwrap().unwrap()), ["c"], "and not taken");
    drop(spool);

    let next = open(directory.path(), ROOMY);
    append(&mut next.appender(), "e\n");
    assert_eq!(drain(&next, 10), ["c", "d", "e"]);
    drop(next);
    let last = open(directory.path(), ROOMY);
    assert_eq!(drain(&last, 10), Vec::<String>::new());
    append(&mut last.appender(), "f\n");
    assert_eq!(drain(&last, 10), ["f"]);
}

#[test]
fn half_a_line_of_a_killed_agent_is_passed_over() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(directory.path(), ROOMY);
    append(&mut spool.appender(), "a\nhal");
    drop(spool);
    let next = open(directory.path(), ROOMY);
    assert_eq!(drain(&next, 10), ["a"]);
    append(&mut next.appender(), "b\n");
    assert_eq!(drain(&next, 10), ["b"]);
}

#[test]
fn half_a_line_that_is_still_being_written_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(directory.path(), ROOMY);
    let mut appender = spool.appender();
    appender.prepare().unwrap();
    appender.write(b"a\nhal").unwrap();
    assert_eq!(drain(&spool, 10), ["a"]);
    appender.write(b"f\n").unwrap();
    assert_eq!(drain(&spool, 10), ["half"]);
}

#[test]
fn a_line_longer_than_a_batch_is_a_batch() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(directory.path(), ROOMY);
    let long = "x".repeat(10_000);
    append(&mut spool.appender(), &format!("a\n{long}\nb\n"));
    assert_eq!(drain(&spool, 1), ["a", long.as_str(), "b"]);
}

#[test]
fn a_full_queue_takes_nothing_more_until_it_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(directory.path(), 1024);
    let mut appender = spool.appender();
    let line = format!("{}\n", "x".repeat(99));
    let mut count = 0;
    let error = loop {
        let mut pending = Pending::of(line.as_bytes());
        match pending.write_to(&mut appender) {
            Ok(()) => count += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((count, error.kind()), (10, io::ErrorKind::StorageFull));
    assert!(error.to_string().contains("--audit-webhook-queue-size"));
    assert_eq!(spool.0.state().left(), 1000);
    drain(&spool, 4);
    append(&mut appender, &line);
    assert_eq!(drain(&spool, 4).len(), 1);
}

/// Else an agent that is started again and again would fill the disk while the webhook is gone.
#[test]
fn what_others_left_counts_as_well() {
    let root = tempfile::tempdir().unwrap();
    let left = Gauge::default();
    let line = format!("{}\n", "x".repeat(99));
    let earlier = Spool::begin(root.path(), 1000, &left).unwrap();
    append(&mut earlier.appender(), &line.repeat(7));
    drop(earlier);
    let spool = Spool::begin(root.path(), 1000, &left).unwrap();
    let mut others = spool.left_behind().unwrap();
    let mut appender = spool.appender();
    append(&mut appender, &line.repeat(3));
    let mut pending = Pending::of(line.as_bytes());
    let error = pending.write_to(&mut appender).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    let earlier = others.pop().unwrap();
    assert_eq!(drain(&earlier, 9).len(), 7);
    earlier.remove().unwrap();
    pending.write_to(&mut appender).unwrap();
    assert_eq!(drain(&spool, 9).len(), 4);
}

/// Whoever writes to it gets what the system says of a full disk.
fn full_disk() -> fs::File {
    fs::OpenOptions::new().append(true).open("/dev/full").unwrap()
}

#[test]
fn on_a_full_disk_what_was_read_makes_room() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(directory.path(), ROOMY);
    let mut appender = spool.appender();
    append(&mut appender, "a\nb\n");
    appender.file = Some(full_disk());
    std::os::unix::fs::symlink("/dev/full", directory.path().join("position.next")).unwrap();
    let mut pending = Pending::of(b"c\n");
    assert!(is_full(&pending.write_to(&mut appender).unwrap_err()));
    assert_eq!(drain(&spool, 1), ["a", "b"]);
    pending.write_to(&mut appender).unwrap();
    assert_eq!(drain(&spool, 9), ["c"]);
    let files = fs::read_dir(directory.path()).unwrap();
    let segments: Vec<u64> = files.filter_map(|entry| number_of(&entry.unwrap().path())).collect();
    assert_eq!(segments, [2], "the first is gone, though it was never long enough");
}

/// Else each attempt would leave a file behind.
#[test]
fn on_a_full_disk_no_segment_is_begun_behind_an_empty_one() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(directory.path(), ROOMY);
    let mut appender = spool.appender();
    append(&mut appender, "a\n");
    for _ in 0..4 {
        appender.prepare().unwrap();
        appender.file = Some(full_disk());
        appender.write(b"b\n").unwrap_err();
    }
    assert_eq!(spool.0.state().segments.len(), 2);
}

#[test]
fn of_more_than_there_is_room_for_whole_lines_are_taken() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(directory.path(), 100);
    let mut appender = spool.appender();
    let mut pending = Pending::of(format!("{0}\n{0}\n{0}\n", "x".repeat(39)).as_bytes());
    let error = pending.write_to(&mut appender).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(drain(&spool, 9).len(), 2);
    // What was read goes when a segment is begun, and whoever waits tries again.
    let mut tries = 0;
    while pending.write_to(&mut appender).is_err() {
        drain(&spool, 9);
        tries += 1;
        assert!(tries < 3);
    }
    assert_eq!(drain(&spool, 9).len(), 1);
}

#[test]
fn a_line_longer_than_the_queue_waits_alone() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(directory.path(), 100);
    let long = "x".repeat(1000);
    append(&mut spool.appender(), &format!("{long}\n"));
    assert_eq!(drain(&spool, 9), [long]);
}

#[test]
fn a_line_longer_than_the_queue_comes_in_when_what_was_before_it_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(directory.path(), 100);
    let mut appender = spool.appender();
    append(&mut appender, "short\n");
    let long = "x".repeat(1000);
    let mut pending = Pending::of(format!("{long}\n").as_bytes());
    assert_eq!(
        pending.write_to(&mut appender).unwrap_err().kind(),
        io::ErrorKind::StorageFull
    );
    // While nothing was read there is no more room than before, however often it is tried.
    assert_eq!(
        pending.write_to(&mut appender).unwrap_err().kind(),
        io::ErrorKind::StorageFull
    );
    assert_eq!(drain(&spool, 9), ["short"]);
    pending.write_to(&mut appender).unwrap();
    assert_eq!(drain(&spool, 9), [long]);
}

#[tokio::test(start_paused = true)]
async fn a_reader_waits_for_lines() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(directory.path(), ROOMY);
    let mut appender = spool.appender();
    let waiting = tokio::spawn({
        let spool = spool.clone();
        async move { spool.readable().await }
    });
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert!(!waiting.is_finished());
    append(&mut appender, "a\n");
    assert!(waiting.await.unwrap());
    assert_eq!(drain(&spool, 4), ["a"]);
    drop(appender);
    assert_eq!(drain(&spool, 4), Vec::<String>::new());
    assert!(!spool.readable().await, "nothing comes any more");
}

#[test]
fn two_agents_have_queues_of_their_own_and_one_takes_up_what_another_left() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().join("queue");
    let size = Gauge::default();
    let begin = || Spool::begin(&root, ROOMY, &size).unwrap();
    let old = begin();
    append(&mut old.appender(), "a\nb\n");
    let new = begin();
    append(&mut new.appender(), "c\n");
    assert!(new.left_behind().unwrap().is_empty(), "it lives");
    assert_eq!(size.get(), 6);
    assert_eq!(drain(&old, 1)[..1], ["a"]);
    append(&mut old.appender(), "d\n");
    drop(old);
    let mut left = new.left_behind().unwrap();
    assert_eq!(left.len(), 1);
    assert!(begin().left_behind().unwrap().is_empty(), "one takes it up");
    let left = left.remove(0);
    assert_eq!(drain(&left, 10), ["d"]);
    left.remove().unwrap();
    assert_eq!(drain(&new, 10), ["c"]);
    assert_eq!(size.get(), 0);
}

#[test]
fn it_is_for_the_agent_alone() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/b");
    append(
        &mut Spool::begin(&path, ROOMY, &Gauge::default()).unwrap().appender(),
        "a\n",
    );
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&path.join("1"))), (0o700, 0o700));
    for file in [LOCK.into(), path_of(Path::new(""), 1)] {
        assert_eq!(mode(&path.join("1").join(file)), 0o600);
    }
}
