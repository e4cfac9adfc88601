//! Owns the record of a load run: what failed and why, how long answers took, and the trail of
//! backends every key has been to. A key's trail is what tells a kept session from a lost one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Failures kept with their details; the rest is only counted, so a dead target cannot fill the memory.
const KEPT_FAILURES: usize = 200;
/// Changes of backend kept per key; the rest is only counted.
const KEPT_VISITS: usize = 1024;
/// Longest time a histogram tells apart from longer ones, in microseconds.
const LONGEST_MICROS: u64 = 120_000_000;

/// What a run has seen so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadReport {
    /// The run goes on.
    pub running: bool,
    /// When the run began, microseconds since the UNIX epoch by the generator's clock.
    pub started_unix_us: u64,
    /// Time since the run began, milliseconds.
    pub elapsed_ms: u64,
    /// Requests that got an answer with a 2xx status, whole.
    pub answered: u64,
    /// Requests that did not.
    pub failed: u64,
    /// Requests that are due by the schedule and not yet sent. Always 0 in a closed loop.
    pub behind: u64,
    /// Connections opened again after the server had closed them between two requests.
    pub reopened: u64,
    /// Answers per second over the run.
    pub per_second: f64,
    /// Time from when a request was due to its last byte.
    pub latency: Latency,
    /// Answers per backend.
    pub backends: BTreeMap<String, u64>,
    /// What the keys went through.
    pub keys: Keys,
    /// The first failures, in order of time.
    pub failures: Vec<Failure>,
}

impl LoadReport {
    /// Where every key is now. Empty without trails.
    pub fn places(&self) -> BTreeMap<&str, &str> {
        let trails = self.keys.trails.iter();
        trails.filter_map(|(key, visits)| Some((key.as_str(), visits.last()?.backend.as_str()))).collect()
    }

    /// The keys that are elsewhere in `later`.
    pub fn moved_until<'a>(&'a self, later: &Self) -> BTreeSet<&'a str> {
        let now = later.places();
        self.places()
            .into_iter()
            .filter(|(key, place)| now.get(key) != Some(place))
            .map(|(key, _)| key)
            .collect()
    }
}

/// Quantiles in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Latency {
    /// Median.
    pub p50_us: u64,
    /// 90 of 100 are at most this.
    pub p90_us: u64,
    /// 99 of 100 are at most this.
    pub p99_us: u64,
    /// 999 of 1000 are at most this.
    pub p999_us: u64,
    /// The longest.
    pub max_us: u64,
}

/// What the keys went through.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Keys {
    /// Keys that got at least one answer.
    pub seen: u64,
    /// Keys that changed backend at least once.
    pub moved: u64,
    /// Changes of backend, all keys together.
    pub changes: u64,
    /// Changes of backend of the key that had most.
    pub most_changes: u32,
    /// The backends of every key, when asked for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub trails: BTreeMap<String, Vec<Visit>>,
}

/// The moment a key came to a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Visit {
    /// When its first answer from there was whole, microseconds since the run began.
    pub at_us: u64,
    /// Where it came to.
    pub backend: String,
}

/// A request that was not answered well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// When it was given up, milliseconds since the run began.
    pub at_ms: u64,
    /// Its key.
    pub key: u32,
    /// What went wrong.
    pub reason: String,
}

/// One answered request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer<'a> {
    /// Number of the request in the order they were due.
    pub turn: u64,
    pub key: u32,
    pub backend: &'a str,
    pub took: Duration,
    /// Since the run began.
    pub at: Duration,
}

/// The running record.
#[derive(Debug)]
pub(super) struct Tally {
    answered: u64,
    failed: u64,
    pub reopened: u64,
    latency: Histogram<u64>,
    lately: Histogram<u64>,
    backends: Vec<(String, u64)>,
    keys: Vec<Trail>,
    failures: Vec<Failure>,
}

#[derive(Clone, Debug, Default)]
struct Trail {
    last_turn: u64,
    last_backend: Option<usize>,
    changes: u32,
    visits: Vec<(u64, usize)>,
}

impl Tally {
    pub(super) fn new(keys: u32) -> Self {
        Self {
            answered: 0,
            failed: 0,
            reopened: 0,
            latency: histogram(),
            lately: histogram(),
            backends: Vec::new(),
            keys: vec![Trail::default(); keys as usize],
            failures: Vec::new(),
        }
    }

    pub(super) fn answered(&mut self, answer: Answer<'_>) {
        let micros = answer.took.as_micros() as u64;
        self.answered += 1;
        self.latency.saturating_record(micros);
        self.lately.saturating_record(micros);
        let backend = self.backend(answer.backend);
        self.backends[backend].1 += 1;
        self.keys[answer.key as usize].visit(answer.turn, backend, answer.at);
    }

    pub(super) fn failed(&mut self, at: Duration, key: u32, reason: String) {
        self.failed += 1;
        if self.failures.len() < KEPT_FAILURES {
            self.failures.push(Failure { at_ms: at.as_millis() as u64, key, reason });
        }
    }

    /// Quantiles since the last call.
    pub(super) fn lately(&mut self) -> Latency {
        let latency = quantiles(&self.lately);
        self.lately.reset();
        latency
    }

    /// The report, without what only the run itself knows (`running`, `behind`, `started_unix_us`).
    pub(super) fn report(&self, elapsed: Duration, trails: bool) -> LoadReport {
        LoadReport {
            elapsed_ms: elapsed.as_millis() as u64,
            answered: self.answered,
            failed: self.failed,
            reopened: self.reopened,
            per_second: self.answered as f64 / elapsed.as_secs_f64().max(0.001),
            latency: quantiles(&self.latency),
            backends: self.backends.iter().cloned().collect(),
            keys: self.keys(trails),
            failures: self.failures.clone(),
            ..LoadReport::default()
        }
    }

    /// Index of a backend; there are few, and the last ones to appear are the least likely to be asked for.
    fn backend(&mut self, name: &str) -> usize {
        self.backends.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
            self.backends.push((name.to_owned(), 0));
            self.backends.len() - 1
        })
    }

    fn keys(&self, trails: bool) -> Keys {
        let seen = || self.keys.iter().enumerate().filter(|(_, trail)| trail.last_backend.is_some());
        let named = |(key, trail): (usize, &Trail)| (format!("key-{key}"), self.named(trail));
        Keys {
            seen: seen().count() as u64,
            moved: seen().filter(|(_, trail)| trail.changes > 0).count() as u64,
            changes: seen().map(|(_, trail)| u64::from(trail.changes)).sum(),
            most_changes: seen().map(|(_, trail)| trail.changes).max().unwrap_or(0),
            trails: if trails { seen().map(named).collect() } else { BTreeMap::new() },
        }
    }

    fn named(&self, trail: &Trail) -> Vec<Visit> {
        let visit = |(at_us, backend): &(u64, usize)| Visit {
            at_us: *at_us,
            backend: self.backends[*backend].0.clone(),
        };
        trail.visits.iter().map(visit).collect()
    }
}

impl Trail {
    /// Two requests of one key may overtake each other; the one that was due later tells where the key is.
    fn visit(&mut self, turn: u64, backend: usize, at: Duration) {
        if self.last_backend.is_some() && turn < self.last_turn {
            return;
        }
        self.last_turn = turn;
        if self.last_backend == Some(backend) {
            return;
        }
        self.changes += u32::from(self.last_backend.is_some());
        self.last_backend = Some(backend);
        if self.visits.len() < KEPT_VISITS {
            self.visits.push((at.as_micros() as u64, backend));
        }
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(LONGEST_MICROS, 3).expect("3 digits and a maximum above 2 are always accepted")
}

fn quantiles(histogram: &Histogram<u64>) -> Latency {
    let at = |quantile| histogram.value_at_quantile(quantile);
    Latency {
        p50_us: at(0.5),
        p90_us: at(0.9),
        p99_us: at(0.99),
        p999_us: at(0.999),
        max_us: histogram.max(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(turn: u64, key: u32, backend: &str) -> Answer<'_> {
        Answer { turn, key, backend, took: Duration::from_micros(turn), at: Duration::from_millis(turn) }
    }

    fn tally(answers: &[(u64, u32, &str)]) -> Tally {
        let mut tally = Tally::new(4);
        answers.iter().for_each(|(turn, key, backend)| tally.answered(answer(*turn, *key, backend)));
        tally
    }

    #[test]
    fn a_key_that_goes_away_and_comes_back_has_changed_twice() {
        let report = tally(&[(0, 0, "a"), (1, 1, "b"), (2, 0, "a"), (4, 0, "b"), (6, 0, "a")])
            .report(Duration::from_secs(1), true);
        assert_eq!(report.keys.seen, 2);
        assert_eq!(report.keys.moved, 1);
        assert_eq!(report.keys.changes, 2);
        assert_eq!(report.keys.most_changes, 2);
        let visit = |at_ms: u64, backend: &str| Visit { at_us: at_ms * 1000, backend: backend.to_owned() };
        assert_eq!(report.keys.trails["key-0"], [visit(0, "a"), visit(4, "b"), visit(6, "a")]);
        assert_eq!(report.backends, BTreeMap::from([("a".to_owned(), 3), ("b".to_owned(), 2)]));
    }

    #[test]
    fn an_answer_overtaken_by_a_later_request_is_no_change() {
        let report =
            tally(&[(0, 0, "a"), (8, 0, "b"), (4, 0, "a"), (12, 0, "b")]).report(Duration::ZERO, false);
        assert_eq!(report.keys.most_changes, 1);
        assert_eq!(report.answered, 4);
    }

    #[test]
    fn failures_beyond_the_limit_are_counted_and_not_kept() {
        let mut tally = Tally::new(1);
        (0..1000).for_each(|at| tally.failed(Duration::from_millis(at), 0, "reset".to_owned()));
        let report = tally.report(Duration::from_secs(1), false);
        assert_eq!((report.failed, report.failures.len()), (1000, KEPT_FAILURES));
    }

    #[test]
    fn quantiles_of_late_cover_only_the_time_since_the_last_question() {
        let mut tally = tally(&[(1000, 0, "a")]);
        assert_eq!(tally.lately().max_us, 1000);
        tally.answered(answer(2000, 0, "a"));
        assert_eq!(tally.lately().p50_us, 2000);
        assert_eq!(tally.report(Duration::from_secs(1), false).latency.p50_us, 1000);
    }

    #[test]
    fn keys_are_compared_by_where_they_are_now() {
        let report = |answers: &[(u64, u32, &str)]| tally(answers).report(Duration::ZERO, true);
        let before = report(&[(0, 0, "a"), (1, 1, "b"), (2, 2, "c")]);
        let after = report(&[(0, 0, "a"), (1, 1, "b"), (2, 2, "c"), (3, 0, "b"), (4, 0, "a"), (5, 1, "c")]);
        assert_eq!(before.moved_until(&after), BTreeSet::from(["key-1"]));
        assert_eq!(after.places()["key-1"], "c");
    }

    #[test]
    fn a_report_survives_its_json() {
        let mut tally = tally(&[(0, 0, "a"), (1, 1, "b")]);
        tally.failed(Duration::from_millis(3), 2, "status 503".to_owned());
        let report = tally.report(Duration::from_millis(1500), true);
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<LoadReport>(&json).unwrap(), report);
    }
}
