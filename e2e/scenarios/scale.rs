//! Scaling: new pods take their share from all others and nobody else's keys move.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use guideway::demo::report::LoadReport;

use crate::fixture::Test;
use crate::load::{self, Load, Plan};
use crate::runner::Verdict;
use crate::{pods, subject};

const KEYS: u32 = 1000;
const FEW: usize = 6;
const MANY: usize = 8;

pub(super) async fn scaling_moves_only_the_needed_share(test: &Test) -> Result<Verdict> {
    pods::start(test, "web", FEW).await?;
    test.serve_pool(pods::pool(test, "web"), FEW).await?;
    let targets = subject::targets(&test.cluster, test.port).await?;
    let load = Load::start(test, "load", Plan { targets, rate: 400, keys: KEYS, connections: 8 }).await?;
    let (few, few_pods) = (load.trails().await?, names(test).await?);

    pods::scale(test, "web", MANY).await?;
    load.until_every_key_is_asked_again().await?;
    let (many, many_pods) = (load.trails().await?, names(test).await?);
    let up = moved_up(&few, &many, &few_pods, &many_pods)?;

    pods::scale(test, "web", FEW).await?;
    load.until_every_key_is_asked_again().await?;
    let (fewer, left) = (load.trails().await?, names(test).await?);
    let down = moved_down(&many, &fewer, &left)?;

    let report = load.stop().await?;
    load::ensure_nothing_failed(&report)?;
    test.note(format!("{FEW} to {MANY} pods: {up} of {KEYS} keys moved, all to the new pods; {MANY} to {FEW}: {down}, all of the pods that went"));
    test.note(load::shown(&report));
    Ok(Verdict::Passed)
}

async fn names(test: &Test) -> Result<BTreeSet<String>> {
    Ok(pods::of(test, "web").await?.into_keys().collect())
}

/// Two new pods of eight take a quarter of the keys. Keys are drawn at random from the table's slots, so
/// their number scatters: four deviations of a binomial count are allowed.
fn moved_up(
    before: &LoadReport,
    after: &LoadReport,
    old: &BTreeSet<String>,
    all: &BTreeSet<String>,
) -> Result<usize> {
    let to = after.places();
    let moved = before.moved_until(after);
    let strays: Vec<_> = moved.iter().filter(|key| old.contains(to[**key])).collect();
    ensure!(strays.is_empty(), "keys moved from one old pod to another: {strays:?}");
    ensure!(to.values().all(|place| all.contains(*place)), "keys are on pods that do not exist");
    let share = (MANY - FEW) as f64 / MANY as f64;
    let expected = f64::from(KEYS) * share;
    let slack = 4.0 * (expected * (1.0 - share)).sqrt();
    ensure!(
        (moved.len() as f64 - expected).abs() <= slack,
        "{} keys moved, {expected} +- {slack:.0} were to",
        moved.len()
    );
    Ok(moved.len())
}

fn moved_down(before: &LoadReport, after: &LoadReport, left: &BTreeSet<String>) -> Result<usize> {
    let (from, to) = (before.places(), after.places());
    let moved = before.moved_until(after);
    let strays: Vec<_> = moved.iter().filter(|key| left.contains(from[**key])).collect();
    ensure!(strays.is_empty(), "keys moved although their pod stayed: {strays:?}");
    ensure!(to.values().all(|place| left.contains(*place)), "keys are on pods that went");
    Ok(moved.len())
}
