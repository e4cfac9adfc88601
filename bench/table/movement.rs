//! Owns the gates of movement: how many slots joins, failures and rollouts move, against the least they
//! must. Exact figures, equal on every machine.

use guideway::balance::assignment::{AssignmentBuilder, GroupLoad};
use guideway::balance::hash::mix;
use guideway::balance::table::{SeatLoad, Table, TableBuilder, prime};

use crate::gates::Gate;

pub(crate) const SIZE: u32 = 65_537;
pub(crate) const SEED: u64 = 7;

/// Seats of one group with one weight, all well.
pub(crate) fn equal(seats: usize) -> Vec<SeatLoad> {
    vec![SeatLoad::well(1); seats]
}

/// All gates of movement.
pub(crate) fn gates() -> Vec<Gate> {
    let mut gates =
        vec![joins(), any_order(100), any_order(1_000), weighted_joins(), groups_scale(), groups_shift()];
    gates.extend([10, 50, 100, 1_000, 5_000].into_iter().flat_map(failures));
    gates.extend([flaps(), balance(), weights(), tiny_weights(), memory()]);
    gates.extend([10, 50, 1_000].map(rollout));
    gates
}

/// Seats join one by one up to 2,000.
fn joins() -> Gate {
    let mut builder = TableBuilder::new(SIZE, SEED);
    let mut before = builder.build(&equal(1));
    let mut excess = 0;
    for seats in 2..=2_000_usize {
        let after = builder.build(&equal(seats));
        excess += before.moved_slots(&after) - after.shares(seats)[seats - 1];
        before = after;
    }
    Gate::new("joins 2..2000: excess slots", "0", excess.to_string(), excess == 0)
}

/// Seats empty and fill again in random order, up to a tenth of them empty at a time.
fn any_order(seats: usize) -> Gate {
    let mut world = World::new(prime::size_for(seats), equal(seats));
    let (mut empty, mut random) = (Vec::new(), 1);
    let mut next = |bound: usize| {
        random = mix(random, 1);
        (random % bound as u64) as usize
    };
    let (mut leaves, mut joins) = (Tally::default(), Tally::default());
    for _ in 0..2_000 {
        if !empty.is_empty() && (empty.len() * 10 >= seats || next(2) == 0) {
            let seat = empty.swap_remove(next(empty.len()));
            joins.add(world.change(seat, 1));
        } else {
            let seat = next(seats);
            if !empty.contains(&seat) {
                empty.push(seat);
                leaves.add(world.change(seat, 0));
            }
        }
    }
    let ratio = (leaves.moved + joins.moved) as f64 / (leaves.least + joins.least) as f64;
    let figure = format!("{:.4} / {:.4}", leaves.ratio(), joins.ratio());
    let name = format!("leaves / returns in any order, N={seats}, up to 10 % empty: moved/least");
    Gate::new(name, "<= 1.02", figure, ratio <= 1.02)
}

/// A pool of mixed weights grows: the quotas of all seats shift with every join.
fn weighted_joins() -> Gate {
    let load = |seat: u64| SeatLoad::well(50 + mix(seat, 3) % 51);
    let loads: Vec<SeatLoad> = (0..101).map(load).collect();
    let mut builder = TableBuilder::new(SIZE, SEED);
    let tables: Vec<Table> = (80..=100).map(|seats| builder.build(&loads[..seats])).collect();
    let excess = growth_excess(&tables, |after| after.shares(after_seats(after)).pop().unwrap_or(0));
    Gate::note("joins 80..100, weights 50..100: excess per join, % of the table", format!("{excess:.2}"))
}

/// Three groups with 90, 10 and 1 parts of the keys. Each grows in turn and shrinks back to its old table.
fn groups_scale() -> Gate {
    let groups = |seats: [usize; 3]| -> Vec<GroupLoad> {
        let names = [("stable", 90), ("canary", 10), ("trial", 1)];
        let group = |((name, weight), seats): ((&str, u64), usize)| GroupLoad {
            name: name.into(),
            weight,
            seats: equal(seats),
        };
        names.into_iter().zip(seats).map(group).collect()
    };
    let mut builder = AssignmentBuilder::default();
    let mut build = |seats| builder.build(&groups(seats), Some(SIZE), SEED);
    let (mut seats, mut excess) = ([10, 4, 2], 0.0_f64);
    for step in 0..120 {
        let (group, before) = (step % 3, build(seats));
        let others: usize = seats[..group].iter().sum();
        seats[group] += 1;
        let after = build(seats);
        // Places behind the newcomer are one further on.
        let newcomer = others + seats[group] - 1;
        let moved = before.moved(&after, |was, is| was == is - u16::from(usize::from(is) > newcomer));
        let share = f64::from(after.shares()[newcomer]) / f64::from(SIZE);
        excess = excess.max((moved - share) * f64::from(SIZE));
    }
    let name = "joins in groups of 90, 10 and 1 parts: excess slots, rounding of a share included";
    Gate::new(name, "<= 1", format!("{excess:.2}"), excess <= 1.0)
}

/// Keys move from one of three groups to another, one part in a hundred at a time.
fn groups_shift() -> Gate {
    let groups = |canary: u64| -> Vec<GroupLoad> {
        let names = [("stable", 90 - canary), ("canary", canary), ("trial", 10)];
        let group = |(name, weight): (&str, u64)| GroupLoad { name: name.into(), weight, seats: equal(10) };
        names.into_iter().map(group).collect()
    };
    let mut builder = AssignmentBuilder::default();
    let (mut moved, mut least) = (0.0, 0.0);
    let mut before = builder.build(&groups(1), Some(SIZE), SEED);
    for canary in 2..=50 {
        let after = builder.build(&groups(canary), Some(SIZE), SEED);
        moved += before.moved(&after, |was, is| was == is);
        least += 0.01;
        before = after;
    }
    let ratio = moved / least;
    Gate::new(
        "weight shifts between groups, 1 % to 50 %: moved/least",
        "<= 1.02",
        format!("{ratio:.4}"),
        ratio <= 1.02,
    )
}

fn after_seats(table: &Table) -> usize {
    table.slots().iter().copied().max().map_or(0, |seat| usize::from(seat) + 1)
}

fn growth_excess(tables: &[Table], newcomer: impl Fn(&Table) -> u32) -> f64 {
    let excess: u32 = tables.windows(2).map(|pair| pair[0].moved_slots(&pair[1]) - newcomer(&pair[1])).sum();
    f64::from(excess) * 100.0 / f64::from(SIZE) / (tables.len() - 1) as f64
}

/// Seats fail one by one in random order; the least is what the failing seat owned.
fn failures(seats: usize) -> Vec<Gate> {
    let size = prime::size_for(seats);
    let mut gates = failures_of(size, seats, true);
    if size != SIZE {
        gates.extend(failures_of(SIZE, seats, false));
    }
    gates
}

fn failures_of(size: u32, seats: usize, is_gate: bool) -> Vec<Gate> {
    let mut world = World::new(size, equal(seats));
    let mut order: Vec<usize> = (0..seats).collect();
    order.sort_by_key(|seat| mix(*seat as u64, 11));
    let (mut tally, mut down, mut gates) = (Tally::default(), 0, Vec::new());
    for percent in [5, 10, 30] {
        let goal = (seats * percent / 100).max(1);
        while down < goal {
            tally.add(world.change(order[down], 0));
            down += 1;
        }
        let live = (seats - down) as f64;
        let most = world.table.shares(seats).into_iter().max().unwrap_or(0);
        let even = f64::from(most) * live / f64::from(size);
        let name = format!("{percent} % of N={seats}, M={size} fail: moved/least; max/avg");
        let figure = format!("{:.4}; {even:.3}", tally.ratio());
        gates.push(match percent {
            30 => Gate::note(name, figure),
            _ if !is_gate => Gate::note(name, figure),
            _ => Gate::new(name, "<= 1.02", figure, tally.ratio() <= 1.02),
        });
    }
    gates
}

/// Each seat of a hundred goes down and comes back, alone and with others down.
fn flaps() -> Gate {
    let mut loads = equal(100);
    let mut builder = TableBuilder::new(SIZE, SEED);
    let well = builder.build(&loads);
    let (mut unequal, mut strangers) = (0, 0);
    for seat in 0..100 {
        loads[seat].live = 0;
        let down = builder.build(&loads);
        let moved = well.slots().iter().zip(down.slots()).filter(|(was, is)| was != is);
        strangers += moved.filter(|(was, _)| usize::from(**was) != seat).count();
        loads[seat].live = 1;
        unequal += usize::from(builder.build(&loads) != well);
    }
    let figure = format!("{unequal} unequal; {strangers} of others");
    Gate::new(
        "100 flaps: tables unequal after; slots moved of others",
        "0; 0",
        figure,
        unequal + strangers == 0,
    )
}

fn balance() -> Gate {
    let spread = |seats: usize| {
        let shares = TableBuilder::new(SIZE, SEED).build(&equal(seats)).shares(seats);
        shares.iter().max().unwrap_or(&0) - shares.iter().min().unwrap_or(&0)
    };
    let most = [1, 2, 3, 10, 50, 100, 655, 1_000, 5_000].map(spread).into_iter().max().unwrap_or(0);
    Gate::new("balance, N=1..5000: max - min slots", "<= 1", most.to_string(), most <= 1)
}

/// The cases in which peers are far off, and random ones.
fn weights() -> Gate {
    let random =
        |seats: u64, spread: u64| -> Vec<u64> { (0..seats).map(|seat| 1 + mix(seat, 5) % spread).collect() };
    let canary: Vec<u64> = [vec![99; 10], vec![1; 10]].concat();
    let mut heavy = vec![1; 99];
    heavy.push(1_000);
    let mut last = vec![1; 9];
    last.push(3);
    let cases = [
        random(1_000, 100),
        random(100, 1_000),
        canary,
        heavy,
        last,
        (991..=1_000).collect(),
        vec![100, 1, 3],
    ];
    let worst = cases.iter().map(|case| weight_error(case)).fold(0.0, f64::max);
    Gate::new("weights: largest error in slots", "< 1", format!("{worst:.2}"), worst < 1.0)
}

fn weight_error(weights: &[u64]) -> f64 {
    let loads: Vec<SeatLoad> = weights.iter().map(|weight| SeatLoad::well(*weight)).collect();
    let shares = TableBuilder::new(SIZE, SEED).build(&loads).shares(weights.len());
    let slot = weights.iter().sum::<u64>() as f64 / f64::from(SIZE);
    let error = |(share, weight): (&u32, &u64)| (f64::from(*share) - *weight as f64 / slot).abs();
    shares.iter().zip(weights).map(error).fold(0.0, f64::max)
}

fn tiny_weights() -> Gate {
    let mut loads = equal(500);
    loads[250] = SeatLoad::well(10_000_000);
    let shares = TableBuilder::new(SIZE, SEED).build(&loads).shares(500);
    let without = shares.iter().filter(|share| **share == 0).count();
    Gate::new("weights: seats with weight and without a slot", "0", without.to_string(), without == 0)
}

fn memory() -> Gate {
    let bytes = |seats: usize| {
        let table = TableBuilder::new(prime::size_for(seats), SEED).build(&equal(seats));
        table.bytes() as f64 / f64::from(table.size())
    };
    let most = [1, 10, 655, 1_000, 1_310, 5_000].map(bytes).into_iter().fold(0.0, f64::max);
    Gate::new("memory, N=1..5000, size chosen: bytes a slot", "<= 2.1", format!("{most:.3}"), most <= 2.1)
}

/// A rolling update with one pod more than wanted: each newcomer is ready first, then takes the seat of
/// one that leaves. Keys are followed from backend to backend.
fn rollout(seats: usize) -> Gate {
    let mut builder = TableBuilder::new(SIZE, SEED);
    let loads = equal(seats);
    let mut occupants: Vec<usize> = (0..seats).collect();
    let serving = |table: &Table, occupants: &[usize]| -> Vec<usize> {
        table.slots().iter().map(|seat| occupants[usize::from(*seat)]).collect()
    };
    let mut changes = vec![0_u32; SIZE as usize];
    let mut before = serving(&builder.build(&loads), &occupants);
    for seat in 0..seats {
        occupants[seat] = seats + seat;
        let after = serving(&builder.build(&loads), &occupants);
        for (change, (was, is)) in changes.iter_mut().zip(before.iter().zip(&after)) {
            *change += u32::from(was != is);
        }
        before = after;
    }
    let most = changes.iter().copied().max().unwrap_or(0);
    let all = f64::from(changes.iter().sum::<u32>()) * 100.0 / f64::from(SIZE);
    let name = format!("rolling update, N={seats}: changes of the unluckiest key; all, % of the table");
    Gate::new(name, "<= 1; 100 %", format!("{most}; {all:.1} %"), most <= 1 && all <= 100.0)
}

/// A table and the loads it was built for.
struct World {
    builder: TableBuilder,
    loads: Vec<SeatLoad>,
    table: Table,
}

impl World {
    fn new(size: u32, loads: Vec<SeatLoad>) -> Self {
        let mut builder = TableBuilder::new(size, SEED);
        let table = builder.build(&loads);
        Self { builder, loads, table }
    }

    /// Slots that moved when the seat's live weight became `live`, and the least that could: what the seat
    /// lost or gained.
    fn change(&mut self, seat: usize, live: u64) -> (u32, u32) {
        self.loads[seat].live = live;
        let after = self.builder.build(&self.loads);
        let moved = self.table.moved_slots(&after);
        let shares = |table: &Table| table.shares(seat + 1)[seat];
        let least = shares(&self.table).abs_diff(shares(&after));
        self.table = after;
        (moved, least)
    }
}

#[derive(Default)]
struct Tally {
    moved: u64,
    least: u64,
}

impl Tally {
    fn add(&mut self, (moved, least): (u32, u32)) {
        self.moved += u64::from(moved);
        self.least += u64::from(least);
    }

    fn ratio(&self) -> f64 {
        self.moved as f64 / self.least.max(1) as f64
    }
}
