//! Owns the rules by which backends take, keep and inherit seats.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::roster::{Occupant, Roster, RosterSeat};
use crate::balance::backend::{BackendId, Member, State};

/// How long a surge pod of a rollout waits for the seat of the pod it replaces. Long enough for the
/// workload's controller to delete the old pod, short enough that a stuck rollout wastes no capacity.
pub const SEAT_HOLD_MS: u64 = 30_000;

/// How much earlier than a rollout's first pod a seat may have been vacated and still count as vacated by that
/// rollout: pods tell their age in whole seconds and by another clock, and a rollout without surge deletes first.
const ROLLOUT_LEAD_MS: u64 = 5_000;

/// How long a follower waits for the lease holder to seat a newcomer before it does so itself.
const HOLDER_SILENCE_MS: u64 = 1_000;

/// Seat numbers are `u16` and `u16::MAX` means "nobody" in a table.
const SEATS_MAX: usize = u16::MAX as usize;

/// Whether this process decides who gets a new seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority {
    /// Holds the lease, or is alone.
    Holder,
    /// Follows the holder's roster.
    Follower,
}

/// One seat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Group whose share the seat carries.
    pub group: Arc<str>,
    /// Weight within the group.
    pub weight: u16,
    /// Who sits there, or sat there last.
    pub occupant: Option<Occupant>,
    /// When the occupant left; `None` while it is there.
    pub vacated_ms: Option<u64>,
}

impl Seat {
    /// Free for a newcomer.
    pub fn is_vacant(&self) -> bool {
        self.vacated_ms.is_some() || self.occupant.is_none()
    }

    fn seat(&mut self, member: &Member) {
        self.occupant = Some(Occupant { id: member.backend.id.clone(), name: member.backend.name.clone() });
        self.group = member.backend.group.clone();
        self.weight = member.weight.get();
        self.vacated_ms = None;
    }
}

/// What happened to the seats, for naming the cause of moved slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// Fewer seats than before: occupants of the last ones moved into holes.
    Compacted,
    /// A seat was added.
    Joined,
    /// A newcomer took a vacated seat.
    Inherited,
    /// An occupant left.
    Left,
}

/// The outcome of settling.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// What changed, each kind once.
    pub events: BTreeSet<Event>,
    /// When to settle again although nothing else happens, milliseconds since the UNIX epoch.
    pub wake_at_ms: Option<u64>,
}

/// The seats of one pool.
#[derive(Clone, Debug, Default)]
pub struct SeatBook {
    pub(super) seats: Vec<Seat>,
    /// The seats as the lease holder last told them. A follower starts from these whenever it settles,
    /// so that whatever it decided by itself lasts only until the holder says otherwise.
    told: Option<Vec<Seat>>,
    /// Ready backends without a seat of the holder's, and since when.
    waiting: HashMap<BackendId, u64>,
}

impl SeatBook {
    /// The seats, seat 0 first.
    pub fn seats(&self) -> &[Seat] {
        &self.seats
    }

    /// Hears the roster of the lease holder, or of an earlier life. A holder that has seats of its own
    /// remembers it for the day it follows again.
    pub fn adopt(&mut self, roster: &Roster) {
        let seats: Vec<Seat> = roster.seats.iter().map(Seat::from).collect();
        if self.seats.is_empty() {
            self.seats.clone_from(&seats);
        }
        self.told = Some(seats);
    }

    /// The seats for others to adopt.
    pub fn roster(&self) -> Roster {
        Roster { seats: (0..).zip(&self.seats).map(|(seat, it)| it.to_roster(seat)).collect() }
    }

    /// Brings the seats in line with the members at `now_ms`. Same seats, members, authority and time:
    /// same outcome, in whatever order the members stand.
    pub fn settle(&mut self, members: &[Member], authority: Authority, now_ms: u64) -> Settled {
        let by_id: Members = members.iter().map(|member| (&member.backend.id, member)).collect();
        let before = self.seats.clone();
        if let (Authority::Follower, Some(told)) = (authority, &self.told) {
            self.seats.clone_from(told);
        }
        self.greet_and_dismiss(&by_id, &before, now_ms);
        let mut wake_at_ms = self.seat_newcomers(&by_id, &before, authority, now_ms);
        if authority == Authority::Holder {
            wake_at_ms = sooner(wake_at_ms, self.compact(now_ms));
        }
        Settled { events: events(&before, &self.seats), wake_at_ms }
    }

    /// Occupants that left vacate their seats, those that came back take them again.
    fn greet_and_dismiss(&mut self, by_id: &Members, before: &[Seat], now_ms: u64) {
        let moves = GroupMoves::new(&self.seats, by_id);
        for (index, seat) in self.seats.iter_mut().enumerate() {
            let Some(occupant) = &seat.occupant else { continue };
            let stays = |member: &&&Member| !is_leaving(member) && moves.allow(seat, member);
            if let Some(member) = by_id.get(&occupant.id).filter(stays) {
                seat.seat(member);
            } else if seat.vacated_ms.is_none() {
                let known = before.get(index).filter(|was| was.occupant == seat.occupant);
                seat.vacated_ms = known.and_then(|was| was.vacated_ms).or(Some(now_ms));
            }
        }
    }

    /// Seats who is ready and has no seat. Returns when someone's patience ends.
    fn seat_newcomers(
        &mut self,
        by_id: &Members,
        before: &[Seat],
        authority: Authority,
        now_ms: u64,
    ) -> Option<u64> {
        let newcomers = self.newcomers(by_id, before);
        self.waiting.retain(|id, _| newcomers.iter().any(|(_, member)| member.backend.id == *id));
        let anyone_live =
            self.occupied().any(|id| by_id.get(id).is_some_and(|member| member.state == State::Ready));
        let mut wake_at_ms = None;
        for (sat_at, member) in newcomers {
            let since = *self.waiting.entry(member.backend.id.clone()).or_insert(now_ms);
            let rollout = rollout_began_ms(member, by_id).filter(|_| anyone_live);
            let held_until = since + rollout.map_or(0, |_| SEAT_HOLD_MS);
            let due = held_until + silence_ms(authority);
            // Holes from before the rollout are left alone: whoever took one would not take over from the pod
            // that goes, that seat would be the next hole, and keys would move twice.
            let vacated_since =
                rollout.filter(|_| now_ms < held_until).map(|it| it.saturating_sub(ROLLOUT_LEAD_MS));
            if let Some(seat) = self.vacant_seat_for(member, sat_at, vacated_since) {
                self.seats[seat].seat(member);
            } else if due <= now_ms && self.seats.len() < SEATS_MAX {
                self.seats.push(Seat::of(member));
            } else {
                let next = if now_ms < held_until { held_until } else { due };
                wake_at_ms = sooner(wake_at_ms, Some(next));
            }
        }
        wake_at_ms
    }

    /// Ready members without a seat and where they sat before, those that sat somewhere first, then by age.
    fn newcomers<'a>(&self, by_id: &Members<'a>, before: &[Seat]) -> Vec<(usize, &'a Member)> {
        let seated: BTreeSet<&BackendId> = self.occupied().collect();
        let sat_at: HashMap<&BackendId, usize> = occupied(before).map(|(index, id)| (id, index)).collect();
        let ready = by_id.values().filter(|it| it.state == State::Ready && !seated.contains(&it.backend.id));
        let mut newcomers: Vec<(usize, &Member)> =
            ready.map(|it| (sat_at.get(&it.backend.id).copied().unwrap_or(usize::MAX), *it)).collect();
        newcomers.sort_by_key(|(sat_at, it)| (*sat_at, it.lineage.created_ms, it.backend.id.clone()));
        newcomers
    }

    fn occupied(&self) -> impl Iterator<Item = &BackendId> {
        occupied(&self.seats).map(|(_, id)| id)
    }

    /// The vacant seat of its group that suits a newcomer best: where it sat, that of its own name, then any that
    /// was not vacated before `since_ms`; the lowest number among equals, which replicas agree on whatever they saw
    /// first.
    fn vacant_seat_for(&self, member: &Member, sat_at: usize, since_ms: Option<u64>) -> Option<usize> {
        const ANY_SEAT: u8 = 2;
        let backend = &member.backend;
        let rank = |index: usize, seat: &Seat| match &seat.occupant {
            _ if index == sat_at => 0,
            Some(occupant) if occupant.name == backend.name => 1,
            _ => ANY_SEAT,
        };
        let suits = |(_, seat): &(usize, &Seat)| seat.is_vacant() && seat.group == backend.group;
        let vacant = self.seats.iter().enumerate().filter(suits);
        let ranked = vacant.map(|(index, seat)| (rank(index, seat), index, seat.vacated_ms));
        let in_time = |vacated_ms: Option<u64>| since_ms.is_none_or(|since| vacated_ms >= Some(since));
        let its = ranked.filter(|(rank, _, vacated_ms)| *rank < ANY_SEAT || in_time(*vacated_ms));
        its.min().map(|(_, index, _)| index)
    }
}

impl Seat {
    fn of(member: &Member) -> Self {
        let mut seat =
            Self { group: member.backend.group.clone(), weight: 1, occupant: None, vacated_ms: None };
        seat.seat(member);
        seat
    }

    fn to_roster(&self, seat: u16) -> RosterSeat {
        RosterSeat {
            seat,
            group: self.group.clone(),
            weight: self.weight,
            occupant: self.occupant.clone(),
            vacated_ms: self.vacated_ms,
        }
    }
}

impl From<&RosterSeat> for Seat {
    fn from(seat: &RosterSeat) -> Self {
        Self {
            group: seat.group.clone(),
            weight: seat.weight.max(1),
            occupant: seat.occupant.clone(),
            vacated_ms: seat.vacated_ms,
        }
    }
}

/// Which occupants may take their seat along into another group. A group that was renamed keeps its seats
/// and so its keys; a backend that went over from one group to another gets a seat there, as newcomers do.
struct GroupMoves<'a> {
    with_members: BTreeSet<&'a str>,
    with_seats: BTreeSet<Arc<str>>,
}

impl<'a> GroupMoves<'a> {
    fn new(seats: &[Seat], by_id: &Members<'a>) -> Self {
        Self {
            with_members: by_id.values().map(|member| &*member.backend.group).collect(),
            with_seats: seats.iter().map(|seat| seat.group.clone()).collect(),
        }
    }

    fn allow(&self, seat: &Seat, member: &Member) -> bool {
        let group = &member.backend.group;
        seat.group == *group || !(self.with_members.contains(&*seat.group) || self.with_seats.contains(group))
    }
}

type Members<'a> = BTreeMap<&'a BackendId, &'a Member>;

fn occupied(seats: &[Seat]) -> impl Iterator<Item = (usize, &BackendId)> {
    let occupied = seats.iter().enumerate().filter(|(_, seat)| !seat.is_vacant());
    occupied.filter_map(|(index, seat)| Some((index, &seat.occupant.as_ref()?.id)))
}

fn sooner(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a.into_iter().chain(b).min()
}

/// What the seats went through, told by how they differ.
fn events(before: &[Seat], after: &[Seat]) -> BTreeSet<Event> {
    let id = |seat: &Seat| seat.occupant.as_ref().map(|it| it.id.clone());
    let mut events = BTreeSet::new();
    if after.len() < before.len() {
        events.insert(Event::Compacted);
    }
    if after.len() > before.len() {
        events.insert(Event::Joined);
    }
    for (was, is) in before.iter().zip(after) {
        if !is.is_vacant() && id(was) != id(is) {
            events.insert(Event::Inherited);
        }
        if is.is_vacant() && !was.is_vacant() {
            events.insert(Event::Left);
        }
    }
    events
}

fn is_leaving(member: &Member) -> bool {
    matches!(member.state, State::Terminating { .. })
}

/// How long whoever follows leaves a new seat to the lease holder.
fn silence_ms(authority: Authority) -> u64 {
    match authority {
        Authority::Holder => 0,
        Authority::Follower => HOLDER_SILENCE_MS,
    }
}

/// When the first pod of a newcomer's revision was made, if its workload is being replaced: another revision of
/// it is still there. A scale-up has one revision only, so its pods never wait.
fn rollout_began_ms(newcomer: &Member, by_id: &Members) -> Option<u64> {
    let lineage = &newcomer.lineage;
    lineage.workload.as_ref()?;
    let of_workload = by_id.values().map(|it| &it.lineage).filter(|it| it.workload == lineage.workload);
    let (its, others): (Vec<_>, Vec<_>) = of_workload.partition(|it| it.revision == lineage.revision);
    let began = its.iter().map(|it| it.created_ms).min();
    began.filter(|_| !others.is_empty())
}
