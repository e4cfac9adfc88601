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
