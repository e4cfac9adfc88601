//! Owns how the demo's figures look: a page for a terminal, a line a second for everything else.

use std::fmt::Write as _;
use std::time::Duration;

use super::report::Latency;

/// Cells of the longest bar; with name and figures it fits a terminal of 80 columns.
const BAR_CELLS: f64 = 36.0;
/// A bar is never drawn to a finer scale than this share, so that ten equal backends do not fill the page.
const FULL_SHARE: f64 = 0.2;
/// Events that stay on the page.
const EVENTS_SHOWN: usize = 6;

/// What the demo shows.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Where requests go in.
    pub url: String,
    /// Where metrics come out.
    pub metrics_url: String,
    /// Since the demo began.
    pub elapsed: Duration,
    /// The ten backends.
    pub backends: Vec<BackendFigures>,
    /// The pool's table; `None` until it is published.
    pub table: Option<TableFigures>,
    /// The load, with `--load`.
    pub load: Option<LoadFigures>,
    /// What happened, oldest first.
    pub events: Vec<String>,
}

/// One backend.
#[derive(Clone, Debug, Default)]
pub struct BackendFigures {
    /// Its name.
    pub name: String,
    /// Whether it is in the pool.
    pub on: bool,
    /// Requests it answered per second.
    pub per_second: f64,
    /// Slots of the table that are its own.
    pub slots: u32,
}

/// The table in use.
#[derive(Clone, Copy, Debug)]
pub struct TableFigures {
    /// Its digest.
    pub digest: u64,
    /// Its slots.
    pub size: u32,
}

/// What the load generator sees.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadFigures {
    /// Keep-alive connections.
    pub connections: u32,
    /// Keys.
    pub keys: u32,
    /// Times of the last second.
    pub latency: Latency,
    /// Requests answered since the demo began.
    pub answered: u64,
    /// Requests failed since the demo began.
    pub failed: u64,
}

impl Figures {
    /// Requests per second, all backends together.
    fn per_second(&self) -> f64 {
        self.backends.iter().map(|backend| backend.per_second).sum()
    }

    /// The page, drawn over the one before.
    pub fn page(&self) -> String {
        let heading = format!("{}  {} s", self.heading(), self.elapsed.as_secs());
        let mut lines = vec![heading, self.table_line(), String::new()];
        lines.extend(self.bars());
        lines.extend([String::new(), self.load_line(), String::new()]);
        lines.extend(self.events.iter().rev().take(EVENTS_SHOWN).rev().cloned());
        // Home, every line cleared to its end, then what is left of a longer page.
        format!("\x1b[H{}\x1b[J", lines.iter().map(|line| format!("{line}\x1b[K\n")).collect::<String>())
    }

    /// What comes before the lines.
    pub fn introduction(&self) -> String {
        let hint = self.load.is_none().then(|| self.load_line() + "\n");
        self.heading() + "\n" + &hint.unwrap_or_default()
    }

    /// The figures of a second in one line.
    pub fn line(&self) -> String {
        let on = self.backends.iter().filter(|backend| backend.on).count();
        let mut line =
            format!("{:>4} s  {on} backends  {:.0} requests/s", self.elapsed.as_secs(), self.per_second());
        if let Some(load) = &self.load {
            let Latency { p50_us, p99_us, .. } = load.latency;
            // Writing to a String cannot fail.
            let _ = write!(line, "  p50 {}  p99 {}  {} failed", millis(p50_us), millis(p99_us), load.failed);
        }
        if let Some(table) = &self.table {
            let _ = write!(line, "  table {:016x}", table.digest);
        }
        line
    }

    fn heading(&self) -> String {
        format!("Guideway demo  {}  metrics {}", self.url, self.metrics_url)
    }

    fn table_line(&self) -> String {
        let on = self.backends.iter().filter(|backend| backend.on).count();
        let backends = format!("{on} of {} backends", self.backends.len());
        match &self.table {
            Some(table) => {
                format!("pool demo: {backends}, table of {} slots, digest {:016x}", table.size, table.digest)
            }
            None => format!("pool demo: {backends}, no table yet"),
        }
    }

    fn bars(&self) -> impl Iterator<Item = String> + '_ {
        let total = self.per_second().max(f64::MIN_POSITIVE);
        let longest = self.backends.iter().map(|it| it.per_second / total).fold(FULL_SHARE, f64::max);
        self.backends.iter().map(move |backend| {
            let share = backend.per_second / total;
            let cells = (share / longest * BAR_CELLS).round() as usize;
            let (colour, mark) = if backend.on { ("\x1b[32m", "") } else { ("\x1b[31m", "off") };
            let bar = format!(
                "{colour}{:<width$}\x1b[0m",
                "\u{2588}".repeat(cells) + mark,
                width = BAR_CELLS as usize
            );
            let BackendFigures { name, per_second, slots, .. } = backend;
            format!("{name:<11}{bar}{:>6.1} %{per_second:>8.0}/s{slots:>7} slots", share * 100.0)
        })
    }

    fn load_line(&self) -> String {
        let Some(load) = &self.load else {
            return format!(
                "send something: curl -i {0} -H 'x-user: ada'   or restart with --load",
                self.url
            );
        };
        let LoadFigures { connections, keys, latency, failed, .. } = load;
        format!(
            "{:.0} requests/s  p50 {}  p99 {}  {failed} failed  ({connections} connections, {keys} keys)",
            self.per_second(),
            millis(latency.p50_us),
            millis(latency.p99_us),
        )
    }
}

fn millis(us: u64) -> String {
    format!("{:.2} ms", us as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> Figures {
        let backend =
            |name: &str, on, per_second, slots| BackendFigures { name: name.into(), on, per_second, slots };
        Figures {
            url: "http://127.0.0.1:8080".into(),
            elapsed: Duration::from_secs(7),
            backends: vec![
                backend("Backend-1", true, 300.0, 49_153),
                backend("Backend-2", false, 100.0, 16_384),
            ],
            table: Some(TableFigures { digest: 0xabc, size: 65_537 }),
            load: Some(LoadFigures {
                connections: 50,
                keys: 1000,
                latency: Latency { p50_us: 310, p99_us: 1250, ..Latency::default() },
                answered: 2800,
                failed: 0,
            }),
            ..Figures::default()
        }
    }

    #[test]
    fn a_line_holds_the_figures_of_a_second() {
        let expected =
            "   7 s  1 backends  400 requests/s  p50 0.31 ms  p99 1.25 ms  0 failed  table 0000000000000abc";
        assert_eq!(figures().line(), expected);
    }

    #[test]
    fn bars_follow_the_shares_and_say_who_is_off() {
        let page = figures().page();
        let bars: Vec<&str> = page.lines().filter(|line| line.starts_with("Backend-")).collect();
        assert!(bars[0].contains(&"\u{2588}".repeat(36)) && bars[0].contains("75.0 %"), "{}", bars[0]);
        assert!(
            bars[1].contains(&("\u{2588}".repeat(12) + "off")) && bars[1].contains("16384 slots"),
            "{}",
            bars[1]
        );
    }

    #[test]
    fn a_pool_without_traffic_has_no_bars_and_says_how_to_send_some() {
        let mut figures = figures();
        figures.backends.iter_mut().for_each(|backend| backend.per_second = 0.0);
        figures.load = None;
        assert!(!figures.page().contains('\u{2588}'));
        assert!(figures.page().contains("curl -i http://127.0.0.1:8080"));
        assert!(figures.introduction().contains("curl -i http://127.0.0.1:8080"));
    }

    #[test]
    fn only_the_last_events_stay() {
        let events = (0..20).map(|number| format!("event {number}")).collect();
        let page = Figures { events, ..figures() }.page();
        assert!(page.contains("event 19") && page.contains("event 14") && !page.contains("event 13"));
    }
}
