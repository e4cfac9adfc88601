//! Owns the laws of the table, as properties over random seats, weights, failures and histories.

use proptest::prelude::*;

use super::*;

const SIZE: u32 = 4_099;

fn seat(nominal: u64, live: u64) -> SeatLoad {
    SeatLoad { nominal, live }
}

fn equal(seats: usize) -> Vec<SeatLoad> {
    vec![seat(1, 1); seats]
}

fn table(loads: &[SeatLoad]) -> Table {
    TableBuilder::new(SIZE, 7).build(loads)
}

/// Any seats: holes, weights, failures, slow start and raised weights.
fn any_loads() -> impl Strategy<Value = Vec<SeatLoad>> {
    let nominal = prop_oneof![4 => Just(100_u64), 2 => 1..200_u64, 1 => Just(0)];
    let live = prop_oneof![4 => Just(100_u64), 1 => 0..300_u64, 2 => Just(0)];
    let load = (nominal, live).prop_map(|(nominal, part)| seat(nominal, nominal * part / 100));
    prop::collection::vec(load, 0..40)
}

fn weighted() -> impl Strategy<Value = Vec<SeatLoad>> {
    prop::collection::vec((1..100_u64).prop_map(SeatLoad::well), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_table_does_not_depend_on_what_was_built_before(
        history in prop::collection::vec(any_loads(), 0..6),
        loads in any_loads(),
    ) {
        let mut builder = TableBuilder::new(SIZE, 7);
        for earlier in &history {
            builder.build(earlier);
        }
        prop_assert_eq!(builder.build(&loads), table(&loads));
    }

    #[test]
    fn only_live_seats_own_slots_and_each_of_them_owns_one(loads in any_loads()) {
        let table = table(&loads);
        let is_live = |load: &SeatLoad| load.nominal > 0 && load.live > 0;
        for (share, load) in table.shares(loads.len()).into_iter().zip(&loads) {
            prop_assert_eq!(share > 0, is_live(load), "{} slots for {:?}", share, load);
        }
        prop_assert_eq!(table.slots().contains(&NOBODY), !loads.iter().any(is_live));
    }

    #[test]
    fn weights_are_met_to_the_slot(loads in weighted()) {
        let total: u64 = loads.iter().map(|load| load.nominal).sum();
        for (share, load) in table(&loads).shares(loads.len()).into_iter().zip(&loads) {
            let error = (u64::from(share) * total).abs_diff(u64::from(SIZE) * load.nominal);
            prop_assert!(error < total, "{share} slots for {} of {total}", load.nominal);
        }
    }

    #[test]
    fn a_scale_of_weights_means_nothing(loads in weighted(), factor in 1..u64::from(u32::MAX)) {
        let scaled = |load: &SeatLoad| seat(load.nominal * factor, load.live * factor);
        let scaled: Vec<SeatLoad> = loads.iter().map(scaled).collect();
        prop_assert_eq!(table(&loads), table(&scaled));
    }

    #[test]
    fn a_flap_leaves_no_trace_and_touches_only_the_keys_of_who_failed(
        loads in weighted(),
        which in any::<prop::sample::Index>(),
    ) {
        let failed = which.index(loads.len());
        let mut builder = TableBuilder::new(SIZE, 7);
        let before = builder.build(&loads);
        let mut down = loads.clone();
        down[failed].live = 0;
        let during = builder.build(&down);
        for (was, is) in before.slots().iter().zip(during.slots()) {
            prop_assert!(was == is || usize::from(*was) == failed);
        }
        prop_assert_eq!(builder.build(&loads), before);
    }

    #[test]
    fn slow_start_gives_a_seat_its_newest_claims_last(seats in 2..40_usize, parts in 1..10_u64) {
        let mut loads: Vec<SeatLoad> = vec![seat(10, 10); seats];
        let mut builder = TableBuilder::new(SIZE, 7);
        let full = builder.build(&loads);
        loads[1].live = parts;
        let slowed = builder.build(&loads);
        for (was, is) in full.slots().iter().zip(slowed.slots()) {
            prop_assert!(was == is || *was == 1);
        }
        let share = f64::from(SIZE) * parts as f64 / (10 * (seats - 1) + parts as usize) as f64;
        prop_assert!((f64::from(slowed.shares(2)[1]) - share).abs() < 1.0);
    }

    #[test]
    fn candidates_begin_with_the_pick_and_name_each_live_seat_once(loads in any_loads(), key in any::<u64>()) {
        let table = table(&loads);
        let candidates: Vec<SeatIndex> = table.candidates(key).collect();
        prop_assert_eq!(candidates.first().copied(), table.pick(key));
        let mut each = candidates.clone();
        each.sort_unstable();
        let live = |load: &SeatLoad| load.nominal > 0 && load.live > 0;
        let seats = loads.iter().zip(0_u16..).filter(|(load, _)| live(load)).map(|(_, seat)| seat);
        prop_assert_eq!(each, seats.collect::<Vec<_>>());
    }
}

#[test]
fn a_join_moves_only_what_the_newcomer_must_own() {
    let mut builder = TableBuilder::new(SIZE, 7);
    let mut before = builder.build(&equal(1));
    for seats in 2..=120_usize {
        let after = builder.build(&equal(seats));
        assert_eq!(before.moved_slots(&after), SIZE / seats as u32, "seat {seats}");
        before = after;
    }
}

#[test]
fn equal_weights_differ_by_one_slot_at_most() {
    for seats in [1, 3, 10, 40, 400] {
        let shares = table(&equal(seats)).shares(seats);
        assert!(
            shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1,
            "{seats} seats: {shares:?}"
        );
    }
}

#[test]
fn failures_move_little_more_than_the_slots_of_who_failed() {
    let mut loads = equal(40);
    let mut builder = TableBuilder::new(SIZE, 7);
    let mut before = builder.build(&loads);
    let (mut moved, mut least) = (0, 0);
    for failed in [7, 0, 39, 20] {
        least += before.shares(40)[failed];
        loads[failed].live = 0;
        let after = builder.build(&loads);
        moved += before.moved_slots(&after);
        before = after;
    }
    assert!(f64::from(moved) <= f64::from(least) * 1.02, "{moved} of {least}");
    let most = *before.shares(40).iter().max().unwrap();
    assert!(most <= SIZE.div_ceil(36) + 7 + 1, "{most}");
}

#[test]
fn the_second_candidate_is_who_inherits() {
    let loads = equal(30);
    let mut builder = TableBuilder::new(SIZE, 7);
    let before = builder.build(&loads);
    let mut down = loads;
    down[3].live = 0;
    let during = builder.build(&down);
    let keys = (0..10_000_u64).map(|key| crate::balance::hash::mix(key, 1));
    let of_failed: Vec<u64> = keys.filter(|key| before.pick(*key) == Some(3)).collect();
    let as_told =
        of_failed.iter().filter(|key| before.candidates(**key).nth(1) == during.pick(**key)).count();
    assert!(as_told * 100 >= of_failed.len() * 95, "{as_told} of {}", of_failed.len());
}

#[test]
fn a_seat_whose_live_weight_rises_gets_its_share() {
    let mut loads = vec![seat(10, 10); 20];
    loads[4].live = 30;
    let shares = table(&loads).shares(20);
    let share = SIZE * 30 / 220;
    assert!(shares[4].abs_diff(share) < share / 20, "{} of {share}", shares[4]);
    loads[4].live = 11;
    assert!(table(&loads).shares(5)[4] > SIZE / 20 + 1);
}

#[test]
fn nobody_live_means_no_pick() {
    let nobody = table(&[seat(1, 0), seat(0, 1)]);
    assert_eq!(nobody.pick(1 << 63), None);
    assert_eq!(nobody.candidates(1 << 63).next(), None);
    assert_eq!(table(&[]).pick(0), None);
}

#[test]
fn one_survivor_inherits_everything() {
    let mut loads = vec![seat(10, 0); 300];
    loads[17].live = 1;
    assert_eq!(table(&loads).shares(18)[17], SIZE);
}

#[test]
fn more_seats_than_slots_fill_the_table() {
    let table = TableBuilder::new(251, 7).build(&equal(300));
    assert_eq!(table.shares(300).iter().filter(|share| **share == 1).count(), 251);
}

#[test]
fn moved_slots_compare_tables_of_different_sizes_by_keys() {
    let table = |size, seats| TableBuilder::new(size, 7).build(&equal(seats));
    assert_eq!(table(251, 1).moved_slots(&table(1021, 1)), 0);
    assert_eq!(table(251, 1).moved_slots(&table(1021, 0)), 251);
    let half = table(1021, 2).shares(2)[1];
    assert_eq!(table(1021, 1).moved_slots(&table(1021, 2)), half);
    assert_eq!(table(251, 1).moved_slots(&table(1021, 2)), (half * 251 + 510) / 1021);
}

#[test]
fn digests_tell_tables_occupants_and_seeds_apart() {
    let occupants: Vec<Option<u64>> = (0..3).map(|id| Some(id + 100)).collect();
    let (three, two) = (table(&equal(3)), table(&equal(2)));
    let digest = |table: &Table, occupants: &[Option<u64>]| super::digest(table, occupants, 7);
    let mut other = occupants.clone();
    other[1] = Some(9);
    assert_eq!(digest(&three, &occupants), digest(&table(&equal(3)), &occupants));
    assert_ne!(digest(&three, &occupants), digest(&two, &occupants));
    assert_ne!(digest(&three, &occupants), digest(&three, &other));
    assert_ne!(digest(&three, &occupants), super::digest(&three, &occupants, 8));
    other = occupants.clone();
    other[2] = None;
    assert_eq!(digest(&two, &occupants), digest(&two, &other));
}

#[test]
fn a_table_takes_little_more_than_two_bytes_a_slot() {
    let table = TableBuilder::new(65_537, 7).build(&equal(655));
    assert!(table.bytes() as f64 <= 65_537.0 * 2.1, "{} bytes", table.bytes());
}
