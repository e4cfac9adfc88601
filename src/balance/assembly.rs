//! Owns one pool between events: its seats and its table. Facts in, snapshot out; the same facts give
//! the same table on every replica.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::assignment::{Assignment, AssignmentBuilder, GroupLoad};
use super::backend::{Backend, BackendId, Member, State};
use super::cast::Cast;
use super::hash;
use super::pool::{Fill, Pool, Readiness};
use super::seats::{Authority, Event, Roster, Seat, SeatBook};
use super::snapshot::{MemberView, PoolSnapshot};
use super::table::{Bases, paper, prime};

/// Seed of every table. One for all pools, so that two pools over the same seats route alike.
const SEED: u64 = 0x4d61_676c_6576;

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
#[derive(Debug, Default)]
pub struct Assembly {
    book: SeatBook,
    builder: AssignmentBuilder,
    current: Option<Arc<PoolSnapshot>>,
}

impl Assembly {
    /// One that shares what its tables start from with the others of `bases`.
    pub fn sharing(bases: Bases) -> Self {
        Self { builder: AssignmentBuilder::sharing(bases), ..Self::default() }
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
        let (table, places) = match pool.fill {
            Fill::Seats => self.fill_seats(pool, cast),
            Fill::Paper => fill_paper(pool, &cast),
        };
        let fresh = self.snapshot(pool, members, table, places);
        let moved = self.current.as_ref().and_then(|before| moved(before, &fresh, &settled.events));
        let same = |current: &&Arc<PoolSnapshot>| {
            current.digest == fresh.digest && current.members == fresh.members && current.pool == *pool
        };
        let snapshot = self.current.as_ref().filter(same).cloned().unwrap_or_else(|| Arc::new(fresh));
        self.current = Some(snapshot.clone());
        Assembled { snapshot, moved, wake_at_ms: settled.wake_at_ms }
    }

    fn snapshot(
        &self,
        pool: &Arc<Pool>,
        members: &[Member],
        table: Assignment,
        places: Places,
    ) -> PoolSnapshot {
        let occupants: Vec<Option<u64>> = places
            .iter()
            .map(|place| place.as_ref().map(|it| hash::stable(it.id.as_str().as_bytes(), SEED)))
            .collect();
        PoolSnapshot {
            pool: pool.clone(),
            members: member_views(members, self.book.seats(), &table, &places),
            digest: table.digest(&occupants, SEED),
            table: Arc::new(table),
            places,
        }
    }

    fn fill_seats(&mut self, pool: &Pool, cast: Cast) -> (Assignment, Places) {
        let seats = cast.groups.iter().flat_map(|group| &group.seats);
        let places = seats.map(|seat| cast.occupants[*seat].map(|it| it.backend.clone())).collect();
        let loads: Vec<GroupLoad> = cast.groups.into_iter().map(|group| group.load).collect();
        (self.builder.build(&loads, pool.table_size, SEED), places)
    }
}

type Places = Box<[Option<Arc<Backend>>]>;

/// How many slots changed backend, and why.
fn moved(before: &PoolSnapshot, after: &PoolSnapshot, events: &BTreeSet<Event>) -> Option<(Cause, u32)> {
    let served = before.members.iter().any(|member| member.slots > 0);
    if before.digest == after.digest || !served {
        return None;
    }
    let resized = before.table.size() != after.table.size();
    let cause = if resized { Cause::Resize } else { cause_of(events) };
    let slots = before.moved_slots(after);
    (slots > 0).then_some((cause, slots))
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

/// The paper's table knows neither seats nor groups: the backends that may serve, sorted by id, take turns.
fn fill_paper(pool: &Pool, cast: &Cast) -> (Assignment, Places) {
    let mut serving: Vec<(&Member, u128)> =
        cast.groups.iter().flat_map(|group| group.shares(&cast.occupants)).collect();
    serving.sort_by(|a, b| a.0.backend.id.cmp(&b.0.backend.id));
    let names: Vec<&[u8]> = serving.iter().map(|(member, _)| member.backend.id.as_str().as_bytes()).collect();
    let weights = turns(&serving.iter().map(|(_, share)| *share).collect::<Vec<_>>());
    let table = paper::fill(&names, &weights, table_size(pool, serving.len()), SEED);
    let places = serving.iter().map(|(member, _)| Some(member.backend.clone())).collect();
    (Assignment::of_one(Arc::new(table), serving.len() as u16), places)
}

/// The size asked for, unless more seats than slots wait for one.
pub fn table_size(pool: &Pool, seats: usize) -> u32 {
    pool.table_size.filter(|size| *size as usize >= seats).unwrap_or_else(|| prime::size_for(seats))
}

/// Shares as 16-bit turn frequencies: equal shares take equal turns of one.
fn turns(shares: &[u128]) -> Vec<u16> {
    let most = shares.iter().copied().max().unwrap_or(1).max(1);
    if shares.iter().all(|share| *share == most) {
        return vec![1; shares.len()];
    }
    let scale = |share: u128| share * u128::from(u16::MAX) / most;
    shares.iter().map(|share| scale(*share).max(1) as u16).collect()
}

fn member_views(
    members: &[Member],
    seats: &[Seat],
    table: &Assignment,
    places: &Places,
) -> Box<[MemberView]> {
    let slots: HashMap<&BackendId, u32> =
        places.iter().zip(table.shares()).filter_map(|(it, share)| Some((&it.as_ref()?.id, share))).collect();
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
