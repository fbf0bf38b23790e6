//! What the operating system says: processor time and memory of processes, and how long the disk takes.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use super::report::median;

/// User and system time so far of a process and of its children that are running.
pub(crate) fn processor_time(process: u32) -> anyhow::Result<Duration> {
    let ticks = rustix::param::clock_ticks_per_second();
    let mut sum = Duration::from_millis(own_ticks(process)? * 1_000 / ticks);
    for child in children(process)? {
        sum += processor_time(child)?;
    }
    Ok(sum)
}

fn own_ticks(process: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{process}/stat");
    let stat = fs::read_to_string(&path).with_context(|| path.clone())?;
    // proc_pid_stat(5): the name in brackets may hold anything; utime and stime are the 12th and 13th after it.
    let (_, fields) = stat.rsplit_once(')').context("a line without a name")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let field = |at: usize| -> anyhow::Result<u64> {
        Ok(fields
            .get(at)
            .context("a line that is too short")?
            .parse()?)
    };
    Ok(field(11)? + field(12)?)
}

fn children(process: u32) -> anyhow::Result<Vec<u32>> {
    let path = format!("/proc/{process}/task/{process}/children");
    let list = fs::read_to_string(&path).with_context(|| path.clone())?;
    list.split_whitespace()
        .map(|child| Ok(child.parse()?))
        .collect()
}

/// What a process has in memory, in KiB (`VmRSS`).
pub(crate) fn resident_kib(process: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS")?;
    let digits = line.split_whitespace().next().context("an empty VmRSS")?;
    Ok(digits.parse()?)
}

/// How long `fdatasync` takes after a small write in `directory`: the median of many, in milliseconds.
pub(crate) fn fdatasync_ms(directory: &Path) -> anyhow::Result<f64> {
    let path = directory.join("fdatasync");
    let mut file = File::create(&path)?;
    let mut took = Vec::new();
    for _ in 0..200 {
        file.write_all(&[1; 4096])?;
        let begun = Instant::now();
        file.sync_data()?;
        took.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    fs::remove_file(&path)?;
    Ok(median(&took))
}
