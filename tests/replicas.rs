//! Replicas that see the same events at different times end with the same table.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../bench/table/replicas.rs"]
mod replicas;

/// `bench/table` runs 100,000 of these; here as many as stay within a few seconds.
#[test]
fn replicas_agree_after_any_schedule_of_joins_leaves_flaps_weights_and_holders() {
    for seed in 0..2_000 {
        replicas::check_schedule(seed).unwrap();
    }
}

/// Schedules that ended with different tables once: their holder had no seat to tell of, and said nothing.
#[test]
fn replicas_agree_where_the_holder_has_no_seats() {
    for seed in [12_802, 12_836, 18_027] {
        replicas::check_schedule(seed).unwrap();
    }
}
