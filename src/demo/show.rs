//! Owns the course of the demo: looks at backends, table and load, switches a backend off and on at a
//! steady beat, and says after each switch how many keys moved, by the table and by real answers.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::balance::snapshot::PoolSnapshot;
use crate::handoff::Reader;

use super::backend::BackendHandle;
use super::load::Load;
use super::moves::Whereabouts;
use super::report::{Latency, LoadReport};
use super::screen::{BackendFigures, Figures, LoadFigures, TableFigures};
use super::switchboard::Switchboard;

/// Everything is looked at so often, and the page is drawn.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Looks for each line that is written where there is no terminal: one a second.
const LOOKS_PER_LINE: u64 = 5;
/// Figures per second are means over this time.
const SECOND: Duration = Duration::from_secs(1);
/// The shortest beat: figures of a faster one would be of two states.
pub const BEAT_MIN: Duration = SECOND;
/// From a switch until its table carries the traffic; a hundredth of that on an idle machine.
const TAKES_EFFECT: Duration = Duration::from_millis(500);
/// In a round every key is sent. The second one makes up for answers that are late.
const ROUNDS: u32 = 2;
/// Times are taken anew so often: a little less than a second, so that every line has new ones.
const LATENCY_EVERY: Duration = Duration::from_millis(900);
/// Backends are switched in steps of this many, so that the eye does not know where to look next.
const STRIDE: usize = 3;
/// The second backend goes first, as in the demonstration this one descends from.
const FIRST_SWITCHED: usize = 1;

/// What the show is made of.
#[derive(Debug)]
pub struct Cast {
    /// The pool's file.
    pub board: Switchboard,
    /// The backends, in the order of the switchboard.
    pub backends: Vec<BackendHandle>,
    /// What the proxy serves.
    pub reader: Reader,
    /// The load, if there is one.
    pub load: Option<RunningLoad>,
    /// Time between two switches; never without. With a load, long enough for its keys.
    pub beat: Option<Duration>,
}

/// A load and what is known of it.
#[derive(Debug)]
pub struct RunningLoad {
    /// The run.
    pub load: Load,
    /// Keep-alive connections.
    pub connections: u32,
    /// Time in which every key is sent at least once.
    pub round: Duration,
}

/// The demo as it runs.
#[derive(Debug)]
pub struct Show {
    cast: Cast,
    keys: u32,
    started: Instant,
    figures: Figures,
    samples: VecDeque<(Instant, Vec<u64>)>,
    latency: (Instant, Latency),
    switches: usize,
    settling: Option<Switch>,
    digest_of_all: Option<u64>,
}

/// A switch whose effect is awaited.
#[derive(Debug)]
struct Switch {
    backend: usize,
    before: Whereabouts,
    answers: Option<LoadReport>,
    settled_at: Instant,
}

impl Show {
    /// A show of `cast`; `keys` are the keys whose moves are counted.
    pub fn new(cast: Cast, keys: u32, url: String, metrics_url: String) -> Self {
        let started = Instant::now();
        Self {
            figures: Figures { url, metrics_url, ..Figures::default() },
            latency: (started, Latency::default()),
            samples: VecDeque::new(),
            switches: 0,
            settling: None,
            digest_of_all: None,
            cast,
            keys,
            started,
        }
    }

    /// How many keys of a load at `rate` can be followed at this beat: each is answered between two switches.
    pub fn keys_followed(beat: Duration, rate: NonZeroU32) -> u32 {
        let room = beat.saturating_sub(TAKES_EFFECT + LOOK_EVERY) / ROUNDS;
        (room.as_secs_f64() * f64::from(rate.get())) as u32
    }

    /// Runs until `stop` and leaves the last page standing.
    pub async fn run(&mut self, stop: &CancellationToken) -> io::Result<()> {
        let terminal = io::stdout().is_terminal();
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        let looks_per_text = if terminal { 1 } else { LOOKS_PER_LINE };
        let _cursor = terminal.then(HiddenCursor::hide).transpose()?;
        let (mut said, mut introduced, mut looks) = (0, terminal, 0);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            self.look()?;
            looks += 1;
            if (looks - 1) % looks_per_text != 0 {
                continue;
            }
            if !std::mem::replace(&mut introduced, true) {
                io::stdout().write_all(self.figures.introduction().as_bytes())?;
            }
            let text = if terminal { self.figures.page() } else { self.lines(&mut said) };
            io::stdout().write_all(text.as_bytes())?;
            io::stdout().flush()?;
        }
        Ok(())
    }

    /// Ends the load and says what became of it. The pool's file stays as long as the show does.
    pub async fn end_load(&self) -> Option<String> {
        let running = self.cast.load.as_ref()?;
        running.load.stop();
        running.load.ended().await;
        let LoadReport { answered, failed, elapsed_ms, failures, .. } = running.load.report(false);
        let first =
            failures.first().map_or_else(String::new, |failure| format!(", the first: {}", failure.reason));
        Some(format!(
            "{answered} requests answered in {:.1} s, {failed} failed{first}",
            elapsed_ms as f64 / 1000.0
        ))
    }

    fn lines(&self, said: &mut usize) -> String {
        let new = self.figures.events[*said..].iter();
        *said = self.figures.events.len();
        new.map(|event| format!("{event}\n")).chain([self.figures.line() + "\n"]).collect()
    }

    fn look(&mut self) -> io::Result<()> {
        let now = Instant::now();
        let snapshot = self.cast.reader.load().pool(&self.cast.board.pool()).cloned();
        self.figures.elapsed = now - self.started;
        self.sample(now);
        self.look_at_backends(snapshot.as_deref());
        self.look_at_load(now);
        if self.settling.as_ref().is_some_and(|switch| now >= switch.settled_at) {
            self.tell_what_moved();
        }
        let due = self.cast.beat.map(|beat| beat * (self.switches as u32 + 1));
        if self.settling.is_none() && due.is_some_and(|due| self.figures.elapsed >= due) {
            self.switch(now)?;
        }
        Ok(())
    }

    /// Keeps the counts of the last second.
    fn sample(&mut self, now: Instant) {
        self.samples.push_back((now, self.cast.backends.iter().map(BackendHandle::served).collect()));
        while self.samples.get(1).is_some_and(|(at, _)| now - *at >= SECOND) {
            self.samples.pop_front();
        }
    }

    fn look_at_backends(&mut self, snapshot: Option<&PoolSnapshot>) {
        let (Some((from, first)), Some((to, last))) = (self.samples.front(), self.samples.back()) else {
            return;
        };
        let seconds = (*to - *from).as_secs_f64().max(0.001);
        let slots = |backend: &BackendHandle| {
            let members = snapshot.into_iter().flat_map(|it| it.members.iter());
            members.filter(|it| it.backend.address == backend.address()).map(|it| it.slots).sum()
        };
        let figures = |(number, backend): (usize, &BackendHandle)| BackendFigures {
            name: backend.name().to_owned(),
            on: self.cast.board.is_on(number),
            per_second: (last[number] - first[number]) as f64 / seconds,
            slots: slots(backend),
        };
        self.figures.backends = self.cast.backends.iter().enumerate().map(figures).collect();
        self.figures.table = snapshot.map(|it| TableFigures { digest: it.digest, size: it.table.size() });
    }

    fn look_at_load(&mut self, now: Instant) {
        let Some(running) = &self.cast.load else { return };
        if now - self.latency.0 >= LATENCY_EVERY {
            self.latency = (now, running.load.lately());
        }
        let report = running.load.report(false);
        self.figures.load = Some(LoadFigures {
            connections: running.connections,
            keys: self.keys,
            latency: self.latency.1,
            answered: report.answered,
            failed: report.failed,
        });
    }

    /// Switches the next backend off, or the one that is off on.
    fn switch(&mut self, now: Instant) -> io::Result<()> {
        let Some(before) = self.whereabouts() else { return Ok(()) };
        let backend = (FIRST_SWITCHED + self.switches / 2 * STRIDE) % self.cast.backends.len();
        let on = self.cast.board.is_on(backend);
        if on {
            self.digest_of_all = Some(before.digest());
        }
        let answers = self.cast.load.as_ref().map(|running| running.load.report(true));
        let round = self.cast.load.as_ref().map_or(Duration::ZERO, |running| running.round);
        let beat = self.cast.beat.unwrap_or(Duration::MAX);
        let settles = (SECOND + ROUNDS * round).min(beat.saturating_sub(LOOK_EVERY));
        self.cast.board.switch(backend, !on)?;
        self.settling = Some(Switch { backend, before, answers, settled_at: now + settles });
        self.switches += 1;
        Ok(())
    }

    fn tell_what_moved(&mut self) {
        let (Some(switch), Some(now)) = (self.settling.take(), self.whereabouts()) else { return };
        let backend = &self.cast.backends[switch.backend];
        let on = self.cast.board.is_on(switch.backend);
        let mut event = format!(
            "{:>4} s  {} {}: ",
            self.figures.elapsed.as_secs(),
            backend.name(),
            if on { "on" } else { "off" }
        );
        event += &switch.before.until(&now).to_string();
        if let (Some(before), Some(running)) = (&switch.answers, &self.cast.load) {
            let moved = before.moved_until(&running.load.report(true)).len();
            event += &format!("; by their answers {moved}");
        }
        event += &match on {
            false => format!("; {} had been there", switch.before.at(backend.address())),
            true if self.digest_of_all == Some(now.digest()) => {
                "; the table is the one from before".to_owned()
            }
            true => "; the table is another one than before".to_owned(),
        };
        self.figures.events.push(event);
    }

    fn whereabouts(&self) -> Option<Whereabouts> {
        let snapshot = self.cast.reader.load();
        snapshot.pool(&self.cast.board.pool()).map(|pool| Whereabouts::of(pool, self.keys))
    }
}

/// The cursor would jump about the page; it comes back however the show ends.
#[derive(Debug)]
struct HiddenCursor;

impl HiddenCursor {
    fn hide() -> io::Result<Self> {
        io::stdout().write_all(b"\x1b[?25l\x1b[2J")?;
        Ok(Self)
    }
}

impl Drop for HiddenCursor {
    fn drop(&mut self) {
        let _ = io::stdout().write_all(b"\x1b[?25h");
        let _ = io::stdout().flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_that_is_followed_is_sent_twice_between_two_switches() {
        let rate = |rate| NonZeroU32::new(rate).unwrap();
        for (beat, per_second, expected) in
            [(10_000, 2000, 9300), (1000, 200, 30), (1000, 1, 0), (600, 2000, 0)]
        {
            let keys = Show::keys_followed(Duration::from_millis(beat), rate(per_second));
            assert_eq!(keys, expected, "at a beat of {beat} ms and {per_second} requests a second");
        }
    }
}
