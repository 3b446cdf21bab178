//! What the broker benches print: latencies by percentile, throughput, and what a broker's process
//! spent meanwhile.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;
use hdrhistogram::Histogram;
use nix::unistd::{SysconfVar, sysconf};
use serde::Serialize;

const GIB: f64 = (1_u64 << 30) as f64;
/// Latencies are kept from this many nanoseconds...
const LATENCY_NS_MIN: u64 = 100;
/// ...to ten minutes; longer ones count as ten minutes...
const LATENCY_NS_MAX: u64 = 600_000_000_000;
/// ...to three significant figures.
const LATENCY_FIGURES: u8 = 3;

/// Latencies of any number of operations in a few KiB.
#[derive(Clone, Debug)]
pub(super) struct Latencies {
    nanoseconds: Histogram<u64>,
}

impl Latencies {
    pub(super) fn new() -> anyhow::Result<Self> {
        let nanoseconds =
            Histogram::new_with_bounds(LATENCY_NS_MIN, LATENCY_NS_MAX, LATENCY_FIGURES);
        Ok(Self {
            nanoseconds: nanoseconds.context("the histogram of latencies")?,
        })
    }

    pub(super) fn record(&mut self, latency: Duration) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.saturating_record(nanoseconds);
    }

    pub(super) fn add(&mut self, other: &Self) {
        // Same bounds, so nothing is out of range.
        let _ = self.nanoseconds.add(&other.nanoseconds);
    }

    pub(super) fn summary(&self) -> Percentiles {
        let ms = |nanoseconds: u64| nanoseconds as f64 / 1e6;
        let at = |quantile| ms(self.nanoseconds.value_at_quantile(quantile));
        Percentiles {
            count: self.nanoseconds.len(),
            mean_ms: self.nanoseconds.mean() / 1e6,
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p99_9_ms: at(0.999),
            max_ms: ms(self.nanoseconds.max()),
        }
    }
}

/// Latencies in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Percentiles {
    pub(super) count: u64,
    pub(super) mean_ms: f64,
    pub(super) p50_ms: f64,
    pub(super) p90_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) p99_9_ms: f64,
    pub(super) max_ms: f64,
}

impl Percentiles {
    pub(super) fn line(&self) -> String {
        format!(
            "p50 {:.3}  p90 {:.3}  p99 {:.3}  p99.9 {:.3}  max {:.3} ms  (of {})",
            self.p50_ms, self.p90_ms, self.p99_ms, self.p99_9_ms, self.max_ms, self.count
        )
    }
}

/// Records and bytes in a time.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Throughput {
    pub(super) records: u64,
    pub(super) bytes: u64,
    pub(super) seconds: f64,
    pub(super) records_per_second: f64,
    pub(super) mib_per_second: f64,
}

impl Throughput {
    pub(super) fn new(records: u64, bytes: u64, elapsed: Duration) -> Self {
        // A run too short for the clock still divides.
        let seconds = elapsed.as_secs_f64().max(1e-9);
        Self {
            records,
            bytes,
            seconds,
            records_per_second: records as f64 / seconds,
            mib_per_second: bytes as f64 / f64::from(1 << 20) / seconds,
        }
    }

    pub(super) fn line(&self) -> String {
        format!(
            "{:.0} records/s  {:.1} MiB/s  ({} records, {:.2} GiB in {:.2} s)",
            self.records_per_second,
            self.mib_per_second,
            self.records,
            self.bytes as f64 / GIB,
            self.seconds
        )
    }
}

/// What processes spent during a run; resident memory as it was at the end.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Usage {
    pub(super) cpu_seconds: f64,
    pub(super) cpu_seconds_per_gib: f64,
    pub(super) cpu_us_per_record: f64,
    pub(super) resident_mib: f64,
    pub(super) peak_resident_mib: f64,
}

impl Usage {
    pub(super) fn line(&self) -> String {
        format!(
            "{:.2} CPU-s  {:.3} CPU-s/GiB  {:.2} us/record  resident {:.1} MiB  peak {:.1} MiB",
            self.cpu_seconds,
            self.cpu_seconds_per_gib,
            self.cpu_us_per_record,
            self.resident_mib,
            self.peak_resident_mib
        )
    }
}

/// Watches processes by `/proc` (proc(5)), all their threads included.
#[derive(Debug)]
pub(super) struct Watch {
    pids: Vec<u32>,
    ticks_per_second: f64,
    ticks_before: u64,
}

impl Watch {
    /// Starts watching; none when there is nobody to watch.
    pub(super) fn start(pids: &[u32]) -> anyhow::Result<Option<Self>> {
        if pids.is_empty() {
            return Ok(None);
        }
        let ticks_per_second =
            sysconf(SysconfVar::CLK_TCK)?.context("the kernel names no clock tick")? as f64;
        Ok(Some(Self {
            ticks_before: total(pids, cpu_ticks)?,
            pids: pids.to_vec(),
            ticks_per_second,
        }))
    }

    /// What was spent since the start, for as much as `throughput` says was moved.
    pub(super) fn finish(&self, throughput: &Throughput) -> anyhow::Result<Usage> {
        let ticks = total(&self.pids, cpu_ticks)? - self.ticks_before;
        let cpu_seconds = ticks as f64 / self.ticks_per_second;
        let mib =
            |field| anyhow::Ok(total(&self.pids, |pid| status_kib(pid, field))? as f64 / 1024.0);
        Ok(Usage {
            cpu_seconds,
            cpu_seconds_per_gib: cpu_seconds
                / (throughput.bytes as f64 / GIB).max(f64::MIN_POSITIVE),
            cpu_us_per_record: cpu_seconds * 1e6 / throughput.records.max(1) as f64,
            resident_mib: mib("VmRSS:")?,
            peak_resident_mib: mib("VmHWM:")?,
        })
    }
}

fn total(pids: &[u32], figure: impl Fn(u32) -> anyhow::Result<u64>) -> anyhow::Result<u64> {
    pids.iter().try_fold(0, |sum, &pid| Ok(sum + figure(pid)?))
}

fn cpu_ticks(pid: u32) -> anyhow::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("no process {pid}"))?;
    ticks_of(&stat).with_context(|| format!("/proc/{pid}/stat has another form than proc(5) says"))
}

/// utime and stime, the 14th and 15th field. The command name may hold blanks and parentheses, so
/// fields are counted from its last parenthesis on.
fn ticks_of(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn status_kib(pid: u32, field: &str) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("no process {pid}"))?;
    kib_of(&status, field).with_context(|| format!("/proc/{pid}/status has no {field}"))
}

fn kib_of(status: &str, field: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(field))?;
    value.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_blanks_does_not_shift_the_fields() {
        let stat = "42 (a b) c) S 1 2 3 4 5 6 7 8 9 10 1000 234 0 0 20 0";
        assert_eq!(ticks_of(stat), Some(1234));
        assert_eq!(ticks_of("42 (cut"), None);
        assert_eq!(
            kib_of("Name:\tx\nVmRSS:\t   2048 kB\n", "VmRSS:"),
            Some(2048)
        );
    }

    #[test]
    fn percentiles_are_within_three_figures_and_sums_add_up() {
        let mut one = Latencies::new().unwrap();
        let mut other = Latencies::new().unwrap();
        for micros in 1..=1_000 {
            let half = if micros % 2 == 0 {
                &mut one
            } else {
                &mut other
            };
            half.record(Duration::from_micros(micros));
        }
        one.add(&other);
        let summary = one.summary();
        assert_eq!(summary.count, 1_000);
        assert!((summary.p50_ms - 0.5).abs() < 0.005 && (summary.p99_ms - 0.99).abs() < 0.01);
        assert!((summary.max_ms - 1.0).abs() < 0.01);
    }

    #[test]
    fn this_process_can_be_watched_and_a_missing_one_is_named() {
        let watch = Watch::start(&[std::process::id()]).unwrap().unwrap();
        let usage = watch
            .finish(&Throughput::new(1, 1, Duration::ZERO))
            .unwrap();
        assert!(usage.resident_mib > 0.0 && usage.peak_resident_mib >= usage.resident_mib * 0.5);
        assert!(Watch::start(&[]).unwrap().is_none());
        let error = Watch::start(&[u32::MAX]).unwrap_err();
        assert!(error.to_string().contains("no process"), "{error}");
    }
}
