//! Owns what came of the load: how long answers took, and why others did not come.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::http1::Reason;

/// The longest latency that is told apart; every wait of the generators is shorter.
const LONGEST_US: u64 = 60_000_000;

/// Digits kept of a latency.
const DIGITS: u8 = 3;

pub(crate) struct Tally {
    latency_us: Histogram<u64>,
    failures: BTreeMap<Reason, u64>,
}

/// What the harness reads.
#[derive(Serialize)]
pub(crate) struct Report {
    answered: u64,
    failed: u64,
    failures: BTreeMap<Reason, u64>,
    p50_us: u64,
    pub(crate) p99_us: u64,
    max_us: u64,
}

impl Tally {
    pub(crate) fn new() -> Self {
        let latency_us =
            Histogram::new_with_max(LONGEST_US, DIGITS).expect("the bounds and digits are allowed");
        Self { latency_us, failures: BTreeMap::new() }
    }

    pub(crate) fn answered(&mut self, after: Duration) {
        self.latency_us.saturating_record(u64::try_from(after.as_micros()).unwrap_or(u64::MAX));
    }

    pub(crate) fn failed(&mut self, reason: Reason) {
        *self.failures.entry(reason).or_default() += 1;
    }

    pub(crate) fn report(&self) -> Report {
        Report {
            answered: self.latency_us.len(),
            failed: self.failures.values().sum(),
            failures: self.failures.clone(),
            p50_us: self.latency_us.value_at_quantile(0.5),
            p99_us: self.latency_us.value_at_quantile(0.99),
            max_us: self.latency_us.max(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_counts_answers_and_failures_apart() {
        let mut tally = Tally::new();
        for millis in 1..=100 {
            tally.answered(Duration::from_millis(millis));
        }
        tally.failed("status 503".to_owned());
        let report = tally.report();
        assert_eq!((report.answered, report.failed), (100, 1));
        assert!((98_900..=99_100).contains(&report.p99_us), "{}", report.p99_us);
    }
}
