//! What the machine has and what this process took, as the kernel tells it.

use std::fs;

/// Bytes that can be taken without swapping, within the process's own limit, where the system tells.
pub(super) fn free_bytes() -> Option<u64> {
    let available = kibibytes("/proc/meminfo", "MemAvailable:")?;
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    Some(match (number("/sys/fs/cgroup/memory.max"), number("/sys/fs/cgroup/memory.current")) {
        (Some(limit), Some(current)) => available.min(limit.saturating_sub(current)),
        _ => available,
    })
}

/// Largest resident memory of this process so far, bytes; 0 where the system does not tell.
pub(super) fn peak_bytes() -> u64 {
    kibibytes("/proc/self/status", "VmHWM:").unwrap_or(0)
}

fn kibibytes(path: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}
