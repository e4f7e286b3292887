//! How much memory a process and those that it started have, from `/proc`. Where there is none, a limit on memory has no effect.

use std::fs::read_to_string;

/// Resident memory of a process and of all that it started, in bytes; without pages of files, which the machine can drop.
pub(super) fn resident_bytes(process: u32) -> u64 {
    let mut total = 0;
    let mut left = vec![process];
    // A process may end while it is looked at; then it has nothing.
    while let Some(process) = left.pop() {
        let status = read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        total += kilobytes(&status, "RssAnon:") + kilobytes(&status, "RssShmem:");
        let threads = std::fs::read_dir(format!("/proc/{process}/task"));
        for thread in threads.into_iter().flatten().flatten() {
            let children = read_to_string(thread.path().join("children")).unwrap_or_default();
            left.extend(
                children
                    .split_whitespace()
                    .filter_map(|child| child.parse::<u32>().ok()),
            );
        }
    }
    total << 10
}

fn kilobytes(status: &str, key: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}
