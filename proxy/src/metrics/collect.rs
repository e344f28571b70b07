//! Figures that are asked for at each scrape rather than counted.

use std::{fmt, fs, io, time::Duration};

use nix::sys::{
    resource::{Resource, UsageWho, getrlimit, getrusage},
    time::TimeVal,
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use super::PREFIX;
use crate::clock::Clock;

/// Enters a gauge of ours whose value is asked for at each scrape: sessions, a certificate's expiry.
///
/// `read` must be quick and must not block; `None` leaves the gauge out.
pub fn register_gauge(
    registry: &mut Registry,
    name: &'static str,
    help: &'static str,
    read: impl Fn() -> Option<i64> + Send + Sync + 'static,
) {
    let ours = registry.sub_registry_with_prefix(PREFIX);
    ours.register_collector(Box::new(Asked { name, help, read }));
}

/// Enters counters of ours that somebody else keeps, one for each value of `label`. `read` gives the values and their
/// counts, which never fall; it is called at each scrape, must be quick, and must not block.
pub fn register_counts(
    registry: &mut Registry,
    name: &'static str,
    help: &'static str,
    label: &'static str,
    read: impl Fn() -> Vec<(&'static str, u64)> + Send + Sync + 'static,
) {
    let ours = registry.sub_registry_with_prefix(PREFIX);
    ours.register_collector(Box::new(Counts {
        name,
        help,
        label,
        read,
    }));
}

/// Enters gauges of ours, one for each value of `label`; else as [`register_counts`].
pub fn register_gauges(
    registry: &mut Registry,
    name: &'static str,
    help: &'static str,
    label: &'static str,
    read: impl Fn() -> Vec<(&'static str, i64)> + Send + Sync + 'static,
) {
    let ours = registry.sub_registry_with_prefix(PREFIX);
    ours.register_collector(Box::new(Gauges {
        name,
        help,
        label,
        read,
    }));
}

struct Asked<F> {
    name: &'static str,
    help: &'static str,
    read: F,
}

impl<F: Fn() -> Option<i64> + Send + Sync + 'static> Collector for Asked<F> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(value) = (self.read)() else { return Ok(()) };
        let gauge = ConstGauge::new(value);
        gauge.encode(encoder.encode_descriptor(self.name, self.help, None, gauge.metric_type())?)
    }
}

impl<F> fmt::Debug for Asked<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Asked({})", self.name)
    }
}

struct Counts<F> {
    name: &'static str,
    help: &'static str,
    label: &'static str,
    read: F,
}

impl<F: Fn() -> Vec<(&'static str, u64)> + Send + Sync + 'static> Collector for Counts<F> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let kind = ConstCounter::new(0u64).metric_type();
        let mut family = encoder.encode_descriptor(self.name, self.help, None, kind)?;
        for (value, count) in (self.read)() {
            let labels = [(self.label, value)];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl<F> fmt::Debug for Counts<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Counts({})", self.name)
    }
}

struct Gauges<F> {
    name: &'static str,
    help: &'static str,
    label: &'static str,
    read: F,
}

impl<F: Fn() -> Vec<(&'static str, i64)> + Send + Sync + 'static> Collector for Gauges<F> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let kind = ConstGauge::new(0i64).metric_type();
        let mut family = encoder.encode_descriptor(self.name, self.help, None, kind)?;
        for (value, number) in (self.read)() {
            let labels = [(self.label, value)];
            ConstGauge::new(number).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl<F> fmt::Debug for Gauges<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gauges({})", self.name)
    }
}

/// The process's own figures, from small files of procfs and two system calls at each scrape.
#[derive(Debug)]
pub(super) struct Process {
    /// In seconds of the epoch. The agent makes its metrics as the first thing.
    started: i64,
}

impl Process {
    pub(super) fn new() -> Self {
        Self {
            started: Clock::system().now().as_second(),
        }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let figures = [
            (
                "process_resident_memory_bytes",
                "Resident memory of the agent",
                resident_bytes(),
            ),
            ("process_open_fds", "Open file descriptors of the agent", open_fds()),
            (
                "process_max_fds",
                "File descriptors that the agent may have open",
                max_fds(),
            ),
            (
                "process_start_time_seconds",
                "When the agent started, in seconds of the epoch",
                Ok(self.started),
            ),
        ];
        for (name, help, value) in figures {
            // A figure that can't be had is left out rather than shown as zero.
            let Ok(value) = value else { continue };
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        if let Ok(seconds) = cpu_seconds() {
            let counter = ConstCounter::new(seconds);
            let (name, help) = (
                "process_cpu_seconds",
                "Processor time that the agent took, its system calls' included",
            );
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}

fn cpu_seconds() -> io::Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let seconds = |time: TimeVal| {
        Duration::new(time.tv_sec().unsigned_abs(), 0) + Duration::from_micros(time.tv_usec().unsigned_abs())
    };
    Ok((seconds(usage.user_time()) + seconds(usage.system_time())).as_secs_f64())
}

fn max_fds() -> io::Result<i64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(i64::try_from(soft).unwrap_or(i64::MAX))
}

pub(super) fn resident_bytes() -> io::Result<i64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line
        .and_then(|line| line.trim().strip_suffix("kB"))
        .and_then(|kib| kib.trim().parse::<i64>().ok());
    kib.map(|kib| kib * 1024)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

pub(super) fn open_fds() -> io::Result<i64> {
    // One of them is the directory being read.
    Ok(i64::try_from(fs::read_dir("/proc/self/fd")?.count()).unwrap_or(i64::MAX) - 1)
}
