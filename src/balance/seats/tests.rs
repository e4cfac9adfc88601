use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::balance::backend::{Backend, HttpVersion, Lineage, Member, State, Weight};

const NOW: u64 = 1_000_000;

/// A pod of the Deployment `web`; `revision` is its template hash, `created` orders newcomers.
fn pod(name: &str, revision: &str, created: u64) -> Member {
    Member {
        backend: Arc::new(Backend {
            id: format!("uid-{name}").as_str().into(),
            group: "stable".into(),
            name: name.into(),
            address: "192.0.2.1:80".parse().unwrap(),
            http: HttpVersion::Http1,
        }),
        weight: Weight::ONE,
        state: State::Ready,
        lineage: Lineage {
            workload: Some("web".into()),
            revision: Some(revision.into()),
            ordinal: None,
            created_ms: created,
        },
    }
}

fn in_group(mut member: Member, group: &str) -> Member {
    Arc::make_mut(&mut member.backend).group = group.into();
    member
}

fn in_state(mut member: Member, state: State) -> Member {
    member.state = state;
    member
}

fn terminating(member: &Member) -> Member {
    in_state(member.clone(), State::Terminating { serving: true })
}

fn pods(names: &[&str]) -> Vec<Member> {
    (0..).zip(names).map(|(created, name)| pod(name, "v1", created)).collect()
}

fn settled(members: &[Member]) -> SeatBook {
    let mut book = SeatBook::default();
    book.settle(members, Authority::Holder, NOW);
    book
}

/// Who sits where; `-` for a vacant seat.
fn seating(book: &SeatBook) -> Vec<String> {
    let name = |seat: &Seat| match &seat.occupant {
        Some(occupant) if !seat.is_vacant() => occupant.name.to_string(),
        _ => "-".into(),
    };
    book.seats().iter().map(name).collect()
}

#[test]
fn newcomers_are_seated_by_age_whatever_order_they_are_listed_in() {
    let members = pods(&["a", "b", "c"]);
    let shuffled = [members[2].clone(), members[0].clone(), members[1].clone()];
    assert_eq!(seating(&settled(&members)), ["a", "b", "c"]);
    assert_eq!(seating(&settled(&shuffled)), ["a", "b", "c"]);
}

#[test]
fn an_unready_backend_keeps_its_seat_but_gets_none() {
    let mut members = pods(&["a", "b"]);
    let mut book = settled(&members);
    members[0].state = State::NotReady;
    members.push(in_state(pod("c", "v1", 9), State::NotReady));
    book.settle(&members, Authority::Holder, NOW + 1);
    assert_eq!(seating(&book), ["a", "b"]);
}

#[test]
fn a_replacement_inherits_the_seat_that_was_vacated() {
    let mut members = pods(&["a", "b", "c"]);
    let mut book = settled(&members);
    members.remove(1);
    book.settle(&members, Authority::Holder, NOW + 1);
    assert_eq!(seating(&book), ["a", "-", "c"]);
    members.push(pod("d", "v1", 9));
    let settled = book.settle(&members, Authority::Holder, NOW + 2);
    assert_eq!(seating(&book), ["a", "d", "c"]);
    assert!(settled.events.contains(&Event::Inherited));
}

#[test]
fn a_surge_pod_waits_for_the_seat_of_the_pod_it_replaces() {
    let old = pods(&["a", "b"]);
    let mut book = settled(&old);
    let surge = pod("n", "v2", 9);
    let rolling = [old[0].clone(), old[1].clone(), surge.clone()];
    let waiting = book.settle(&rolling, Authority::Holder, NOW + 1);
    assert_eq!(seating(&book), ["a", "b"]);
    assert_eq!(waiting.wake_at_ms, Some(NOW + 1 + SEAT_HOLD_MS));
    let replaced = [old[0].clone(), terminating(&old[1]), surge];
    book.settle(&replaced, Authority::Holder, NOW + 2);
    assert_eq!(seating(&book), ["a", "n"]);
}

#[test]
fn a_surge_pod_whose_rollout_is_stuck_gets_a_seat_of_its_own_in_the_end() {
    let mut members = pods(&["a"]);
    let mut book = settled(&members);
    members.push(pod("n", "v2", 9));
    book.settle(&members, Authority::Holder, NOW);
    book.settle(&members, Authority::Holder, NOW + SEAT_HOLD_MS - 1);
    assert_eq!(seating(&book), ["a"]);
    book.settle(&members, Authority::Holder, NOW + SEAT_HOLD_MS);
    assert_eq!(seating(&book), ["a", "n"]);
}

/// One pod after the other is replaced, each by a pod that is ready before it goes. Who sat where, each time.
fn rolled(book: &mut SeatBook, old: &[Member], begin: u64) -> Vec<Vec<String>> {
    let mut seen = Vec::new();
    for step in 0..old.len() {
        let at = begin + step as u64 * 2_000;
        let new = |nth: usize| pod(&format!("n{nth}"), "v2", (begin + nth as u64 * 2_000) / 1000 * 1000);
        let mut members: Vec<Member> = (0..=step).map(new).collect();
        members.extend_from_slice(&old[step..]);
        book.settle(&members, Authority::Holder, at + 500);
        seen.push(seating(book));
        members[step + 1] = terminating(&old[step]);
        book.settle(&members, Authority::Holder, at + 600);
        seen.push(seating(book));
    }
    seen
}

#[test]
fn a_rollout_leaves_the_holes_of_an_earlier_scale_down_alone() {
    let all = pods(&["a", "b", "c", "d", "e", "f"]);
    let mut book = settled(&all);
    let left = [all[0].clone(), all[2].clone(), all[3].clone(), all[5].clone()];
    book.settle(&left, Authority::Holder, NOW + 1);
    let seen = rolled(&mut book, &left, NOW + 7_000);
    assert_eq!(seen[0], ["a", "-", "c", "d", "-", "f"], "the first surge pod waits");
    assert_eq!(seen[7], ["n0", "-", "n1", "n2", "-", "n3"]);
    let seats_of = |name: &str| -> BTreeSet<usize> {
        seen.iter().filter_map(|seating| seating.iter().position(|it| it == name)).collect()
    };
    for name in ["n0", "n1", "n2", "n3"] {
        assert_eq!(seats_of(name).len(), 1, "{name}: {seen:?}");
    }
}

#[test]
fn a_rollout_without_surge_fills_the_seats_it_vacated() {
    let old = pods(&["a", "b", "c"]);
    let mut book = settled(&old);
    // The pod goes first, and its successor's age is told in whole seconds.
    let begun = [terminating(&old[0]), old[1].clone(), old[2].clone()];
    book.settle(&begun, Authority::Holder, NOW + 900);
    let successor = pod("n", "v2", NOW + 1_000);
    book.settle(&[old[1].clone(), old[2].clone(), successor], Authority::Holder, NOW + 9_000);
    assert_eq!(seating(&book), ["n", "b", "c"]);
}

#[test]
fn a_surge_pod_whose_rollout_is_stuck_fills_a_hole_in_the_end() {
    let mut members = pods(&["a", "b"]);
    let mut book = settled(&members);
    members.remove(1);
    book.settle(&members, Authority::Holder, NOW + 1);
    let later = NOW + 60_000;
    members.push(pod("n", "v2", later));
    let waiting = book.settle(&members, Authority::Follower, later);
    assert_eq!(waiting.wake_at_ms, Some(later + SEAT_HOLD_MS));
    book.settle(&members, Authority::Follower, later + SEAT_HOLD_MS - 1);
    assert_eq!(seating(&book), ["a", "-"]);
    book.settle(&members, Authority::Follower, later + SEAT_HOLD_MS);
    assert_eq!(seating(&book), ["a", "n"]);
}

#[test]
fn a_scale_up_is_seated_at_once() {
    let mut members = pods(&["a", "b"]);
    let mut book = settled(&members);
    members.extend([pod("c", "v1", 8), pod("d", "v1", 9)]);
    let settled = book.settle(&members, Authority::Holder, NOW + 1);
    assert_eq!(seating(&book), ["a", "b", "c", "d"]);
    assert_eq!(settled.wake_at_ms, None);
}

#[test]
fn nobody_waits_when_nobody_is_left_to_serve() {
    let old = pods(&["a"]);
    let mut book = settled(&old);
    let members = [in_state(old[0].clone(), State::NotReady), pod("n", "v2", 9)];
    book.settle(&members, Authority::Holder, NOW + 1);
    assert_eq!(seating(&book), ["a", "n"]);
}

#[test]
fn a_pod_of_a_stateful_set_finds_the_seat_of_its_ordinal() {
    let mut members = pods(&["db-0", "db-1", "db-2"]);
    let mut book = settled(&members);
    members.truncate(1);
    book.settle(&members, Authority::Holder, NOW + 1);
    let mut again = pod("db-2", "v1", 9);
    Arc::make_mut(&mut again.backend).id = "uid-new".into();
    members.push(again);
    book.settle(&members, Authority::Holder, NOW + 2);
    assert_eq!(seating(&book), ["db-0", "-", "db-2"]);
}

#[test]
fn a_backend_that_comes_back_takes_its_old_seat() {
    let members = pods(&["a", "b", "c"]);
    let mut book = settled(&members);
    book.settle(&members[..1], Authority::Holder, NOW + 1);
    book.settle(&[members[0].clone(), members[2].clone()], Authority::Holder, NOW + 2);
    assert_eq!(seating(&book), ["a", "-", "c"]);
}

#[test]
fn a_follower_inherits_at_once_but_leaves_new_seats_to_the_holder_for_a_second() {
    let mut members = pods(&["a", "b"]);
    let mut book = settled(&members);
    members[1] = terminating(&members[1]);
    members.extend([pod("n", "v1", 8), pod("m", "v1", 9)]);
    let waiting = book.settle(&members, Authority::Follower, NOW);
    assert_eq!(seating(&book), ["a", "n"]);
    assert_eq!(waiting.wake_at_ms, Some(NOW + 1_000));
    book.settle(&members, Authority::Follower, NOW + 1_000);
    assert_eq!(seating(&book), ["a", "n", "m"]);
}

#[test]
fn a_roster_carries_the_seats_over_unchanged() {
    let mut members = pods(&["a", "b", "c"]);
    let mut book = settled(&members);
    members.remove(1);
    book.settle(&members, Authority::Holder, NOW + 1);
    let mut other = SeatBook::default();
    other.adopt(&book.roster());
    assert_eq!(other.seats(), book.seats());
}

#[test]
fn a_pool_that_shrank_for_good_gets_fewer_seats() {
    let members = pods(&["a", "b", "c", "d", "e"]);
    let mut book = settled(&members);
    let left = [members[1].clone(), members[4].clone()];
    let early = book.settle(&left, Authority::Holder, NOW);
    assert_eq!(seating(&book), ["-", "b", "-", "-", "e"]);
    let due = early.wake_at_ms.expect("compaction is planned");
    book.settle(&left, Authority::Follower, due);
    assert_eq!(book.seats().len(), 5, "only the holder compacts");
    let settled = book.settle(&left, Authority::Holder, due);
    assert_eq!(seating(&book), ["e", "b"]);
    assert!(settled.events.contains(&Event::Compacted));
}

#[test]
fn holes_in_half_of_the_seats_are_kept() {
    let members = pods(&["a", "b", "c", "d"]);
    let mut book = settled(&members);
    let settled = book.settle(&members[..2], Authority::Holder, NOW + 1);
    assert_eq!(settled.wake_at_ms, None);
    book.settle(&members[..2], Authority::Holder, NOW + 10_000_000);
    assert_eq!(seating(&book), ["a", "b", "-", "-"]);
}

#[test]
fn a_newcomer_leaves_the_vacant_seats_of_other_groups_alone() {
    let mut members = pods(&["a", "b"]);
    let mut book = settled(&members);
    members.remove(0);
    members.push(in_group(pod("c", "v1", 9), "canary"));
    book.settle(&members, Authority::Holder, NOW + 1);
    assert_eq!(seating(&book), ["-", "b", "c"]);
}

#[test]
fn a_group_that_is_renamed_keeps_its_seats() {
    let members = pods(&["a", "b"]);
    let mut book = settled(&members);
    let renamed: Vec<Member> = members.into_iter().map(|member| in_group(member, "main")).collect();
    let settled = book.settle(&renamed, Authority::Holder, NOW + 1);
    assert_eq!(seating(&book), ["a", "b"]);
    assert!(book.seats().iter().all(|seat| &*seat.group == "main") && settled.events.is_empty());
}

#[test]
fn a_backend_that_changes_its_group_gets_a_seat_there() {
    let mut members = pods(&["a", "b", "c"]);
    members[2] = in_group(members[2].clone(), "canary");
    let mut book = settled(&members);
    members[0] = in_group(members[0].clone(), "canary");
    book.settle(&members, Authority::Holder, NOW + 1);
    assert_eq!(seating(&book), ["-", "b", "c", "a"]);
    members[1] = in_group(members[1].clone(), "canary");
    book.settle(&members, Authority::Holder, NOW + 2);
    assert_eq!(seating(&book), ["-", "-", "c", "a", "b"]);
}

#[test]
fn each_group_is_compacted_by_itself() {
    let canary = |name| in_group(pod(name, "v1", 5), "canary");
    let mut members = pods(&["a", "b", "c"]);
    members.extend([canary("x"), canary("y")]);
    let mut book = settled(&members);
    let left = [members[2].clone(), members[3].clone(), members[4].clone()];
    let due = book.settle(&left, Authority::Holder, NOW).wake_at_ms.expect("compaction is planned");
    book.settle(&left, Authority::Holder, due);
    assert_eq!(seating(&book), ["c", "x", "y"]);
}

#[test]
fn an_empty_group_keeps_its_place_before_others_and_none_at_the_end() {
    let canary = |name| in_group(pod(name, "v1", 5), "canary");
    let mut members = pods(&["a", "b"]);
    members.extend([canary("x"), canary("y")]);
    let later = NOW + 1_000_000;
    let mut book = settled(&members);
    book.settle(&members[2..], Authority::Holder, NOW);
    book.settle(&members[2..], Authority::Holder, later);
    assert_eq!(seating(&book), ["-", "x", "y"]);
    let mut book = settled(&members);
    book.settle(&members[..2], Authority::Holder, NOW);
    book.settle(&members[..2], Authority::Holder, later);
    assert_eq!(seating(&book), ["a", "b"]);
}

#[test]
fn names_of_groups_that_come_and_go_do_not_pile_up() {
    let mut book = SeatBook::default();
    for round in 0..20_u64 {
        let main = pod("a", "v1", 0);
        let group = format!("trial-{round}");
        let trial = in_group(pod(&group, "v1", round + 1), &group);
        book.settle(&[main, trial], Authority::Holder, NOW + round * 100_000);
    }
    assert!(book.seats().len() < 8, "{:?}", seating(&book));
}
