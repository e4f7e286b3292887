//! How fast questions may be asked, all servers together.

use std::time::{Duration, Instant};

use crate::config::Endpoint;

/// Seconds' worth of tokens that may be asked at once.
const BURST_SECONDS: f64 = 10.0;
/// What a question is taken for before any was answered: at most so many tokens each way.
const GUESS: u64 = 2048;

/// Limits how many requests begin in a minute and how many tokens they have.
#[derive(Debug)]
pub(crate) struct Pace {
    interval: Duration,
    next: Instant,
    tokens: Option<Tokens>,
}

/// Tokens that may be asked now.
#[derive(Debug)]
struct Tokens {
    per_second: f64,
    left: f64,
    seen: Instant,
    /// Tokens of all answers so far, and how many answers.
    sum: f64,
    answers: f64,
}

impl Tokens {
    fn most(&self) -> f64 {
        self.per_second * BURST_SECONDS
    }

    fn refill(&mut self, now: Instant) {
        let more = self.per_second * now.duration_since(self.seen).as_secs_f64();
        self.left = (self.left + more).min(self.most());
        self.seen = now;
    }
}

impl Pace {
    pub(crate) fn new(config: &Endpoint) -> Self {
        let interval = config.requests_per_minute.map_or(Duration::ZERO, |count| {
            Duration::from_mins(1) / count.max(1)
        });
        let now = Instant::now();
        let tokens = config.tokens_per_minute.map(|count| {
            let mut tokens = Tokens {
                per_second: f64::from(count) / 60.0,
                left: 0.0,
                seen: now,
                sum: 0.0,
                answers: 0.0,
            };
            tokens.left = tokens.most();
            tokens
        });
        Self {
            interval,
            next: now,
            tokens,
        }
    }

    /// Whether a request of so many bytes may begin now; if so, it counts. What it is taken for, in tokens.
    pub(crate) fn take(&mut self, bytes: usize, most_tokens: u32) -> Option<f64> {
        self.take_at(Instant::now(), bytes, most_tokens)
    }

    fn take_at(&mut self, now: Instant, bytes: usize, most_tokens: u32) -> Option<f64> {
        const BYTES_OF_TOKEN: u64 = 4;
        if now < self.next {
            return None;
        }
        let mut guess = 0.0;
        if let Some(tokens) = &mut self.tokens {
            tokens.refill(now);
            guess = if tokens.answers > 0.0 {
                tokens.sum / tokens.answers
            } else {
                let asked = (bytes as u64 / BYTES_OF_TOKEN).min(GUESS);
                (asked + u64::from(most_tokens).min(GUESS)) as f64
            };
            // A question larger than all that may be asked at once waits until nothing else is asked.
            if tokens.left < guess.min(tokens.most()) {
                return None;
            }
            tokens.left -= guess;
        }
        self.next = now.max(self.next) + self.interval;
        Some(guess)
    }

    /// A request is over: what it was taken for, and what it had; nothing where it was not answered.
    pub(crate) fn settle(&mut self, guess: f64, had: Option<u64>) {
        let Some(tokens) = &mut self.tokens else {
            return;
        };
        let real = had.map_or(0.0, |had| had as f64);
        if had.is_some() {
            tokens.sum += real;
            tokens.answers += 1.0;
        }
        tokens.left += guess - real;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_answers_count_and_not_what_they_were_taken_for() {
        let config = Endpoint {
            tokens_per_minute: Some(6000),
            ..Endpoint::new("http://a/v1", "m")
        };
        let mut pace = Pace::new(&config);
        let now = Instant::now();
        // 1000 tokens may be asked at once, and 100 more each second.
        let guess = pace.take_at(now, 400, 500).unwrap();
        assert_eq!(guess, 600.0);
        assert_eq!(pace.take_at(now, 400, 500), None);
        pace.settle(guess, Some(200));
        for _ in 0..4 {
            assert_eq!(pace.take_at(now, 400, 500), Some(200.0), "as those before");
        }
        assert_eq!(pace.take_at(now, 400, 500), None);
        pace.settle(200.0, None);
        assert!(
            pace.take_at(now, 400, 500).is_some(),
            "one that failed gives its tokens back"
        );
        let later = now + Duration::from_secs(2);
        assert!(pace.take_at(later, 400, 500).is_some());
        assert_eq!(pace.take_at(later, 400, 500), None);
    }

    #[test]
    fn requests_begin_one_interval_apart() {
        let config = Endpoint {
            requests_per_minute: Some(60),
            ..Endpoint::new("http://a/v1", "m")
        };
        let mut pace = Pace::new(&config);
        let now = Instant::now();
        assert_eq!(pace.take_at(now, 4, 1), Some(0.0));
        assert_eq!(pace.take_at(now, 4, 1), None);
        assert!(pace.take_at(now + Duration::from_secs(1), 4, 1).is_some());
    }
}
