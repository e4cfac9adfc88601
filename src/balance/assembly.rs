//! Owns one pool between events: its seats and its table. Facts in, snapshot out; the same facts give
//! the same table on every replica.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::backend::{Backend, BackendId, Member, State};
use super::hash;
use super::pool::{Fill, Pool, Readiness};
use super::seats::{Authority, Event, Roster, Seat, SeatBook};
use super::snapshot::{MemberView, PoolSnapshot};
use super::table::{SeatLoad, Table, TableBuilder, digest, paper, prime};

/// Seed of every table. One for all pools, so that two pools over the same seats route alike.
const SEED: u64 = 0x4d61_676c_6576;

/// Weights are split exactly enough when a group's share is cut into this many parts.
const WEIGHT_SCALE: u64 = 1 << 24;

/// Why slots moved, the strongest reason first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The table has another size or fill.
    Resize,
    /// Seats were given up after a lasting scale-down.
    Compaction,
    /// A seat was added.
    Join,
    /// A newcomer took over a seat.
    Inheritance,
    /// An occupant left.
    Leave,
    /// An occupant became ready or unready, or a weight changed.
    Readiness,
}

impl Cause {
    /// The value of the metric's label `cause`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Resize => "resize",
            Self::Compaction => "compaction",
            Self::Join => "join",
            Self::Inheritance => "inheritance",
            Self::Leave => "leave",
            Self::Readiness => "readiness",
        }
    }
}

/// What one assembly gave.
#[derive(Debug)]
pub struct Assembled {
    /// The pool as the proxy shall serve it; the very same `Arc` when nothing changed.
    pub snapshot: Arc<PoolSnapshot>,
    /// Slots that changed backend, and why. `None` for a first table and when nothing moved.
    pub moved: Option<(Cause, u32)>,
    /// When to assemble again although nothing else happens, milliseconds since the UNIX epoch.
    pub wake_at_ms: Option<u64>,
}

/// The lasting state of one pool.
#[derive(Debug)]
pub struct Assembly {
    ordinal: u32,
    book: SeatBook,
    builder: Option<TableBuilder>,
    current: Option<Arc<PoolSnapshot>>,
}

impl Assembly {
    /// A pool without seats. `ordinal` is its small number for the life of the process.
    pub fn new(ordinal: u32) -> Self {
        Self { ordinal, book: SeatBook::default(), builder: None, current: None }
    }

    /// Takes over the seats of the lease holder, or of an earlier life.
    pub fn adopt(&mut self, roster: &Roster) {
        self.book.adopt(roster);
    }

    /// The seats for others to adopt.
    pub fn roster(&self) -> Roster {
        self.book.roster()
    }

    /// The seats.
    pub fn seats(&self) -> &[Seat] {
        self.book.seats()
    }

    /// Settles the seats and builds what follows from them.
    pub fn assemble(
        &mut self,
        pool: &Arc<Pool>,
        members: &[Member],
        authority: Authority,
        now_ms: u64,
    ) -> Assembled {
        let acting = acting_members(pool, members);
        let settled = self.book.settle(&acting, authority, now_ms);
        let cast = Cast::new(pool, &acting, self.book.seats());
        let (table, seats) = match pool.fill {
            Fill::Seats => self.fill_seats(pool, &cast),
            Fill::Paper => fill_paper(pool, &cast),
        };
        let occupants: Vec<Option<u64>> = seats
            .iter()
            .map(|seat| seat.as_ref().map(|it| hash::stable(it.id.as_str().as_bytes(), SEED)))
            .collect();
        let digest = digest(&table, &occupants, SEED);
        let members = member_views(members, self.book.seats(), &table, &seats);
        let moved = self.moved(&table, &seats, digest, &settled.events);
        let snapshot = match &self.current {
            Some(current)
                if current.digest == digest && current.members == members && current.pool == *pool =>
            {
                current.clone()
            }
            _ => Arc::new(PoolSnapshot {
                pool: pool.clone(),
                ordinal: self.ordinal,
                table: Arc::new(table),
                seats,
                members,
                digest,
            }),
        };
        self.current = Some(snapshot.clone());
        Assembled { snapshot, moved, wake_at_ms: settled.wake_at_ms }
    }

    fn fill_seats(&mut self, pool: &Pool, cast: &Cast) -> (Table, Occupants) {
        let size = table_size(pool, cast.loads.len());
        if self.builder.as_ref().is_none_or(|builder| builder.size() != size) {
            self.builder = Some(TableBuilder::new(size, SEED));
        }
        let builder = self.builder.as_mut().expect("set just above");
        let seats =
            cast.occupants.iter().map(|occupant| occupant.map(|member| member.backend.clone())).collect();
        (builder.build(&cast.loads), seats)
    }

    fn moved(
        &self,
        table: &Table,
        seats: &Occupants,
        digest: u64,
        events: &BTreeSet<Event>,
    ) -> Option<(Cause, u32)> {
        let before = self.current.as_ref().filter(|before| before.digest != digest)?;
        if before.table.slots().iter().all(|seat| *seat == u16::MAX) {
            return None;
        }
        let cause = if before.table.size() == table.size() { cause_of(events) } else { Cause::Resize };
        let slots = moved_slots((&before.table, &before.seats), (table, seats));
        (slots > 0).then_some((cause, slots))
    }
}

/// The members as the pool wants them judged: where readiness is ignored, only leaving counts.
fn acting_members<'a>(pool: &Pool, members: &'a [Member]) -> Cow<'a, [Member]> {
    if pool.readiness == Readiness::Require {
        return Cow::Borrowed(members);
    }
    let mut members = members.to_vec();
    members.iter_mut().filter(|it| it.state == State::NotReady).for_each(|it| it.state = State::Ready);
    Cow::Owned(members)
}

fn cause_of(events: &BTreeSet<Event>) -> Cause {
    match events.first() {
        Some(Event::Compacted) => Cause::Compaction,
        Some(Event::Joined) => Cause::Join,
        Some(Event::Inherited) => Cause::Inheritance,
        Some(Event::Left) => Cause::Leave,
        None => Cause::Readiness,
    }
}

/// The size asked for, unless more seats than slots wait for one.
pub fn table_size(pool: &Pool, seats: usize) -> u32 {
    let automatic = prime::size_for(seats);
    pool.table_size.filter(|size| *size as usize >= seats).unwrap_or(automatic)
}

type Occupants = Box<[Option<Arc<Backend>>]>;

/// Slots whose backend differs, in slots of the second table. Where the sizes differ, slots are
/// compared at the same place of the key space.
pub fn moved_slots(before: (&Table, &Occupants), after: (&Table, &Occupants)) -> u32 {
    let id = |(table, seats): (&Table, &Occupants), slot: u32| -> Option<BackendId> {
        seats[usize::from(table.seat_at(slot)?)].as_ref().map(|backend| backend.id.clone())
    };
    if before.0.size() == after.0.size() {
        return moved_between_equals(before, after);
    }
    let scale = u64::from(before.0.size());
    let size = after.0.size();
    let twin = |slot: u32| (u64::from(slot) * scale / u64::from(size)) as u32;
    (0..size).filter(|slot| id(before, twin(*slot)) != id(after, *slot)).count() as u32
}

/// Compares each pair of seats once, however many slots they share.
fn moved_between_equals(before: (&Table, &Occupants), after: (&Table, &Occupants)) -> u32 {
    let backend = |seats: &Occupants, seat: u16| {
        seats.get(usize::from(seat)).and_then(|it| it.clone()).map(|it| it.id.clone())
    };
    let same_seat: Vec<bool> =
        (0..after.1.len() as u16).map(|seat| backend(before.1, seat) == backend(after.1, seat)).collect();
    let mut differing: HashMap<(u16, u16), u32> = HashMap::new();
    for (old, new) in before.0.slots().iter().zip(after.0.slots()) {
        if old != new || !same_seat.get(usize::from(*new)).copied().unwrap_or(true) {
            *differing.entry((*old, *new)).or_default() += 1;
        }
    }
    differing
        .iter()
        .filter(|((old, new), _)| backend(before.1, *old) != backend(after.1, *new))
        .map(|(_, n)| n)
        .sum()
}

/// Who plays now: for every seat its occupant that may serve, and its load.
struct Cast<'a> {
    occupants: Vec<Option<&'a Member>>,
    loads: Vec<SeatLoad>,
}

impl<'a> Cast<'a> {
    fn new(pool: &Pool, members: &'a [Member], seats: &[Seat]) -> Self {
        let by_id: HashMap<&BackendId, &Member> =
            members.iter().map(|member| (&member.backend.id, member)).collect();
        let occupant = |seat: &Seat| by_id.get(&seat.occupant.as_ref()?.id).copied();
        let present: Vec<Option<&Member>> = seats.iter().map(occupant).collect();
        let mut occupants: Vec<Option<&Member>> = present
            .iter()
            .zip(seats)
            .map(|(it, seat)| it.filter(|m| !seat.is_vacant() && m.state == State::Ready))
            .collect();
        if occupants.iter().all(Option::is_none) {
            // Nobody is ready: those on their way out that still answer are better than nobody.
            occupants = present
                .into_iter()
                .map(|it| it.filter(|m| m.state == State::Terminating { serving: true }))
                .collect();
        }
        let loads = loads(pool, seats, &occupants);
        for (occupant, load) in occupants.iter_mut().zip(&loads) {
            *occupant = occupant.filter(|_| load.live > 0);
        }
        Self { occupants, loads }
    }
}

/// A group's share is split among its seats by their weights: over all of them for the nominal load,
/// over the live ones for the live load, so a group keeps its share when one of its backends fails.
fn loads(pool: &Pool, seats: &[Seat], occupants: &[Option<&Member>]) -> Vec<SeatLoad> {
    let groups: BTreeMap<&str, (u16, u64)> = (0..)
        .zip(&pool.groups)
        .map(|(index, group)| (&*group.name, (index, u64::from(group.weight))))
        .collect();
    let mut sums: HashMap<u16, (u64, u64)> = HashMap::new();
    for (seat, occupant) in seats.iter().zip(occupants) {
        let Some((group, _)) = groups.get(&*seat.group) else { continue };
        let sum = sums.entry(*group).or_default();
        sum.0 += u64::from(seat.weight);
        sum.1 += if occupant.is_some() { u64::from(seat.weight) } else { 0 };
    }
    let load = |(seat, occupant): (&Seat, &Option<&Member>)| {
        let Some((group, weight)) = groups.get(&*seat.group) else {
            return SeatLoad { group: u16::MAX, nominal: 0, live: 0 };
        };
        let share = |sum: u64| (weight * u64::from(seat.weight) * WEIGHT_SCALE).checked_div(sum).unwrap_or(0);
        let (all, live) = sums[group];
        SeatLoad {
            group: *group,
            nominal: share(all),
            live: if occupant.is_some() { share(live) } else { 0 },
        }
    };
    seats.iter().zip(occupants).map(load).collect()
}

/// The paper's table knows no seats: the backends that may serve, sorted by id, take turns.
fn fill_paper(pool: &Pool, cast: &Cast) -> (Table, Occupants) {
    let mut serving: Vec<(&Member, u64)> =
        cast.occupants.iter().zip(&cast.loads).filter_map(|(it, load)| Some(((*it)?, load.live))).collect();
    serving.sort_by(|a, b| a.0.backend.id.cmp(&b.0.backend.id));
    let names: Vec<&[u8]> = serving.iter().map(|(member, _)| member.backend.id.as_str().as_bytes()).collect();
    let weights = turns(&serving.iter().map(|(_, live)| *live).collect::<Vec<_>>());
    let table = paper::fill(&names, &weights, table_size(pool, serving.len()), SEED);
    (table, serving.iter().map(|(member, _)| Some(member.backend.clone())).collect())
}

/// Loads as 16-bit turn frequencies: equal loads take equal turns of one.
fn turns(loads: &[u64]) -> Vec<u16> {
    let most = loads.iter().copied().max().unwrap_or(1).max(1);
    if loads.iter().all(|load| *load == most) {
        return vec![1; loads.len()];
    }
    let scale = |load: u64| u128::from(load) * u128::from(u16::MAX) / u128::from(most);
    loads.iter().map(|load| scale(*load).max(1) as u16).collect()
}

fn member_views(members: &[Member], seats: &[Seat], table: &Table, serving: &Occupants) -> Box<[MemberView]> {
    let shares = table.shares(serving.len());
    let slots: HashMap<&BackendId, u32> =
        serving.iter().zip(shares).filter_map(|(it, share)| Some((&it.as_ref()?.id, share))).collect();
    let seat_of: HashMap<&BackendId, u16> = (0..)
        .zip(seats)
        .filter(|(_, seat)| !seat.is_vacant())
        .filter_map(|(index, seat)| Some((&seat.occupant.as_ref()?.id, index)))
        .collect();
    let view = |member: &Member| MemberView {
        backend: member.backend.clone(),
        state: member.state,
        seat: seat_of.get(&member.backend.id).copied(),
        weight: member.weight.get(),
        slots: slots.get(&member.backend.id).copied().unwrap_or(0),
    };
    let mut views: Vec<MemberView> = members.iter().map(view).collect();
    views.sort_by(|a, b| a.backend.id.cmp(&b.backend.id));
    views.into()
}
