//! Owns the gates of time. Ratios compare medians of rounds that take turns in this one process, so a
//! busy machine slows both sides alike.

use std::hint::black_box;
use std::time::{Duration, Instant};

use guideway::balance::assignment::{AssignmentBuilder, GroupLoad};
use guideway::balance::hash::mix;
use guideway::balance::table::{SeatLoad, Table, TableBuilder, digest, prime};

use crate::gates::Gate;
use crate::movement::{SEED, SIZE, equal};

/// Events of each kind that are timed.
const EVENTS: usize = 200;

/// What lasts long is interrupted half of the time on a busy machine; the fastest tenth is not.
pub(crate) const CALM: usize = 10;

/// All gates of time.
pub(crate) fn gates() -> Vec<Gate> {
    let mut gates = Vec::new();
    for (seats, micros) in [(100, 50), (1_000, 100)] {
        gates.extend(events(seats, micros));
    }
    gates.extend([10, 100, 1_000, 5_000].map(|seats| from_scratch(SIZE, seats)));
    gates.push(from_scratch(prime::size_for(5_000), 5_000));
    gates.extend([10, 5_000].map(|seats| lookup(1, seats)));
    gates.push(lookup(3, 10));
    gates.push(candidates());
    gates.push(digests());
    gates
}

fn events(seats: usize, micros: u64) -> Vec<Gate> {
    let mut loads: Vec<SeatLoad> = equal(seats);
    loads.iter_mut().for_each(|load| (load.nominal, load.live) = (100, 100));
    let mut builder = TableBuilder::new(SIZE, SEED);
    builder.build(&loads);
    let (mut leave, mut back, mut quota, mut raise, mut join) = (vec![], vec![], vec![], vec![], vec![]);
    let mut timed = |loads: &[SeatLoad], times: &mut Vec<Duration>| {
        let start = Instant::now();
        black_box(builder.build(loads));
        times.push(start.elapsed());
    };
    for event in 0..EVENTS {
        let seat = (mix(event as u64, 9) % seats as u64) as usize;
        for (live, times) in [(0, &mut leave), (50, &mut quota), (100, &mut back), (150, &mut raise)] {
            loads[seat].live = live;
            timed(&loads, times);
        }
        loads[seat].live = 100;
    }
    for _ in 0..EVENTS {
        loads.push(loads[0]);
        timed(&loads, &mut join);
    }
    let weight = weight_changes(seats);
    let goal = format!("<= {micros} us");
    let gate = |name: &str, times: &mut [Duration]| {
        let (median, late) = (quantile(times, 50), quantile(times, 95));
        let name = format!("one {name}, N={seats}: median (95 %)");
        Gate::new(
            name,
            &goal,
            format!("{} ({}) us", us(median), us(late)),
            median <= Duration::from_micros(micros),
        )
    };
    let mut gates = vec![
        gate("failure", &mut leave),
        gate("return", &mut back),
        gate("slow start", &mut quota),
        gate("raise of live weight", &mut raise),
        gate("join", &mut join),
        weight,
    ];
    gates.push(with_a_tenth_down(seats));
    gates
}

/// The nominal weight of one seat changes in a pool of mixed weights, so every quota shifts.
fn weight_changes(seats: usize) -> Gate {
    let load = |seat: usize| {
        let weight = 50 + mix(seat as u64, 3) % 51;
        SeatLoad::well(weight)
    };
    let mut loads: Vec<SeatLoad> = (0..seats).map(load).collect();
    let mut builder = TableBuilder::new(SIZE, SEED);
    builder.build(&loads);
    let mut times = Vec::new();
    for event in 0..EVENTS / 4 {
        loads[event] = SeatLoad::well(40);
        let start = Instant::now();
        black_box(builder.build(&loads));
        times.push(start.elapsed());
    }
    Gate::note(
        format!("one weight of mixed ones changes, N={seats}: median"),
        format!("{} us", us(quantile(&mut times, 50))),
    )
}

fn with_a_tenth_down(seats: usize) -> Gate {
    let mut loads = equal(seats);
    loads.iter_mut().step_by(10).for_each(|load| load.live = 0);
    let mut builder = TableBuilder::new(SIZE, SEED);
    builder.build(&loads);
    let mut times = Vec::new();
    for event in 0..EVENTS {
        let seat = (mix(event as u64, 9) % seats as u64) as usize;
        loads[seat].live ^= 1;
        let start = Instant::now();
        black_box(builder.build(&loads));
        times.push(start.elapsed());
        loads[seat].live ^= 1;
    }
    Gate::note(
        format!("one failure or return, N={seats}, a tenth down: median"),
        format!("{} us", us(quantile(&mut times, 50))),
    )
}

fn from_scratch(size: u32, seats: usize) -> Gate {
    let loads = equal(seats);
    let mut times: Vec<Duration> = (0..7)
        .map(|_| {
            let start = Instant::now();
            black_box(TableBuilder::new(size, SEED).build(&loads));
            start.elapsed()
        })
        .collect();
    let time = quantile(&mut times, CALM).as_secs_f64() * 1e3;
    Gate::note(format!("first table of a process, N={seats}, M={size}"), format!("{time:.2} ms"))
}

/// Throughput of picks for keys that are already hashed.
/// Key to place, as the proxy asks for each request. With several groups it takes two tables.
fn lookup(groups: usize, seats: usize) -> Gate {
    const KEYS: u64 = 1 << 14;
    let group = |number: usize| GroupLoad { name: number.to_string().into(), weight: 1, seats: equal(seats) };
    let loads: Vec<GroupLoad> = (0..groups).map(group).collect();
    let assignment = AssignmentBuilder::default().build(&loads, Some(SIZE), SEED);
    let keys: Vec<u64> = (0..KEYS).map(|key| mix(key, 13)).collect();
    let round = || {
        let start = Instant::now();
        let sum: u64 = keys.iter().map(|key| u64::from(assignment.pick(*key).unwrap_or(0))).sum();
        black_box(sum);
        start.elapsed()
    };
    let mut times: Vec<Duration> = (0..200).map(|_| round()).collect();
    let each = quantile(&mut times, CALM).as_secs_f64() * 1e9 / KEYS as f64;
    let (name, figure) = (format!("lookup, {groups} x N={seats}"), format!("{each:.2} ns"));
    match groups {
        1 => Gate::new(name, "<= 1 ns", figure, each <= 1.0),
        _ => Gate::note(name, figure),
    }
}

/// What a retry costs.
fn candidates() -> Gate {
    const KEYS: u64 = 1 << 12;
    let table: Table = TableBuilder::new(SIZE, SEED).build(&equal(1_000));
    let round = || {
        let start = Instant::now();
        (0..KEYS).for_each(|key| {
            black_box(table.candidates(mix(key, 13)).nth(1));
        });
        start.elapsed()
    };
    let mut times: Vec<Duration> = (0..50).map(|_| round()).collect();
    let each = quantile(&mut times, 50).as_secs_f64() * 1e9 / KEYS as f64;
    Gate::note("second candidate of a key, N=1000", format!("{each:.0} ns"))
}

fn digests() -> Gate {
    let table = TableBuilder::new(SIZE, SEED).build(&equal(1_000));
    let occupants: Vec<Option<u64>> = (0..1_000).map(|id| Some(mix(id, 17))).collect();
    let mut times: Vec<Duration> = (0..200)
        .map(|_| {
            let start = Instant::now();
            black_box(digest(&table, &occupants, SEED));
            start.elapsed()
        })
        .collect();
    let median = quantile(&mut times, 50);
    Gate::new("digest, N=1000", "<= 20 us", format!("{} us", us(median)), median <= Duration::from_micros(20))
}

/// The `percent` quantile of the times.
pub(crate) fn quantile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() - 1) * percent / 100]
}

fn us(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e6)
}
