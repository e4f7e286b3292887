//! One server as the client sees it: whether it lives, and when it may be asked.

use std::time::{Duration, Instant};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

use crate::question::Dialect;

/// Faults in a row after which a server is asked one question at a time until it answers.
const SUSPECT_AFTER: u32 = 8;
/// A server with open questions that was not heard of for so long is asked whether it lives.
const PROBE_AFTER: Duration = Duration::from_secs(5);
/// How often a server that was given up is asked whether it is back.
const REVIVE_AFTER: Duration = Duration::from_secs(15);
/// The longest pause that a server may ask for.
const LONGEST_PAUSE: Duration = Duration::from_mins(10);

/// Pauses that grow, each with a random part so that requests spread out.
pub(crate) fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(250))
        .with_max_delay(Duration::from_secs(20))
        .with_jitter()
        .without_max_times()
        .build()
}

/// What is known of a server.
#[derive(Debug)]
pub(crate) struct Server {
    /// Without a slash at its end.
    pub(crate) url: String,
    pub(crate) dialect: Dialect,
    /// Questions that it has.
    pub(crate) open: usize,
    /// Whether it is being asked if it lives.
    pub(crate) is_probed: bool,
    /// Given up until it says that it is back.
    pub(crate) is_dead: bool,
    /// Has answered that it has the model.
    pub(crate) is_checked: bool,
    last_sign: Instant,
    failing_since: Option<Instant>,
    faults: u32,
    last_fault: String,
    paused_until: Option<Instant>,
    pauses: ExponentialBackoff,
}

impl Server {
    pub(crate) fn new(url: &str) -> Self {
        Self {
            url: url.trim_end_matches('/').to_owned(),
            dialect: Dialect::default(),
            open: 0,
            is_probed: false,
            is_dead: false,
            is_checked: false,
            last_sign: Instant::now(),
            failing_since: None,
            faults: 0,
            last_fault: String::new(),
            paused_until: None,
            pauses: backoff(),
        }
    }

    /// It answered, whatever it said.
    pub(crate) fn lives(&mut self) {
        self.last_sign = Instant::now();
        self.failing_since = None;
        self.faults = 0;
        self.is_dead = false;
        self.pauses = backoff();
    }

    /// It did not do what a server does, in an attempt that began at this time.
    pub(crate) fn failed(&mut self, begun: Instant, fault: String) {
        let since = self.failing_since.get_or_insert(begun.max(self.last_sign));
        // Faults of attempts that began before its last sign of life say nothing new.
        *since = (*since).max(self.last_sign);
        self.faults += 1;
        self.last_fault = fault;
        if self.is_suspect() {
            let pause = self.pauses.next().unwrap_or_default();
            self.pause(pause.min(Duration::from_secs(5)));
        }
    }

    fn is_suspect(&self) -> bool {
        self.faults >= SUSPECT_AFTER
    }

    /// It wants no requests for a while.
    pub(crate) fn pause(&mut self, pause: Duration) {
        let until = Instant::now() + pause.min(LONGEST_PAUSE);
        self.paused_until = self.paused_until.max(Some(until));
    }

    /// Whether it may be given another question.
    pub(crate) fn has_room(&self, concurrency: usize) -> bool {
        let limit = if self.is_suspect() { 1 } else { concurrency };
        let is_paused = self
            .paused_until
            .is_some_and(|until| Instant::now() < until);
        self.is_checked && !self.is_dead && !is_paused && self.open < limit
    }

    /// Whether somebody must ask if it lives and what it serves.
    pub(crate) fn wants_probe(&self) -> bool {
        let silence = self.last_sign.elapsed();
        let is_due = if self.is_dead {
            silence > REVIVE_AFTER
        } else {
            !self.is_checked || (self.open > 0 && silence > PROBE_AFTER)
        };
        let is_paused = self
            .paused_until
            .is_some_and(|until| Instant::now() < until);
        !self.is_probed && is_due && !is_paused
    }

    /// Gives it up when it has failed for too long; whether that happened just now.
    pub(crate) fn give_up(&mut self, patience: Duration) -> bool {
        let is_over = self
            .failing_since
            .is_some_and(|since| since.elapsed() >= patience);
        if !is_over || self.is_dead {
            return false;
        }
        self.is_dead = true;
        self.last_sign = Instant::now();
        true
    }

    /// What there is to say about its end.
    pub(crate) fn obituary(&self) -> String {
        format!(
            "{}: {} requests in a row failed, the last one with: {}",
            self.url, self.faults, self.last_fault
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_answer_wipes_out_all_faults() {
        let mut server = Server::new("http://a/v1/");
        server.is_checked = true;
        for _ in 0..SUSPECT_AFTER {
            server.failed(Instant::now(), "503".to_owned());
        }
        assert!(!server.has_room(8), "paused");
        server.paused_until = None;
        assert!(server.has_room(8));
        server.open = 1;
        assert!(!server.has_room(8), "one at a time");
        server.lives();
        assert!(server.has_room(8) && !server.give_up(Duration::ZERO));
        server.failed(Instant::now(), "503".to_owned());
        assert!(server.give_up(Duration::ZERO) && server.is_dead);
        assert!(!server.give_up(Duration::ZERO), "once");
        assert!(server.obituary().starts_with("http://a/v1: 1 requests"));
    }
}
