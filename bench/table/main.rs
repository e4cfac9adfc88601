//! Measures every promise of the assignment table and says which hold. Exits with 1 when one does not.
//! `--only PART,…` runs some of `movement`, `replicas`, `timing` and `fill`; `--no-timing` leaves the gates
//! of time out, for machines whose clock says nothing; `--schedules N` runs fewer than 100,000, and
//! `--first SEED` begins with another than 0.
#![allow(missing_docs)]

mod fill;
mod gates;
mod movement;
mod reference;
mod replicas;
mod timing;

use std::process::ExitCode;

use gates::Gate;

/// The allocator of the server: a fresh table is larger than what the system's keeps at hand.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PARTS: [&str; 4] = ["movement", "replicas", "timing", "fill"];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |name: &str| arguments.iter().skip_while(|argument| *argument != name).nth(1);
    let no_timing = arguments.iter().any(|argument| argument == "--no-timing");
    let number = |name: &str, default: u64| match value(name).map_or(Ok(default), |text| text.parse()) {
        Ok(number) => Some(number),
        Err(error) => {
            eprintln!("{name}: {error}; give a number");
            None
        }
    };
    let (Some(first), Some(schedules)) = (number("--first", 0), number("--schedules", 100_000)) else {
        return ExitCode::from(2);
    };
    let parts: Vec<&str> = value("--only").map_or(PARTS.to_vec(), |only| only.split(',').collect());
    if let Some(unknown) = parts.iter().find(|part| !PARTS.contains(part)) {
        eprintln!("--only: there is no part {unknown:?}; give some of {}", PARTS.join(","));
        return ExitCode::from(2);
    }
    let is_wanted = |part: &str| parts.contains(&part);
    let mut gates = vec![];
    if is_wanted("movement") {
        gates.extend(movement::gates());
    }
    if is_wanted("replicas") {
        gates.push(agreement(first, schedules));
    }
    if is_wanted("timing") && !no_timing {
        gates.extend(timing::gates());
    }
    if is_wanted("fill") && !no_timing {
        gates.extend(fill::gates());
    }
    if gates::report(&gates) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Replicas that see the same events at different times end with the same digest.
fn agreement(first: u64, schedules: u64) -> Gate {
    let failures: Vec<String> = (first..first.saturating_add(schedules))
        .filter_map(|seed| replicas::check_schedule(seed).err())
        .collect();
    failures.iter().take(3).for_each(|failure| eprintln!("{failure}"));
    let name = format!("replicas that disagree after any of {schedules} schedules");
    Gate::new(name, "0", failures.len().to_string(), failures.is_empty())
}
