//! A pod's readiness flips: away with its keys, and every one of them back afterwards.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::fixture::Test;
use crate::load::{self, Load, Plan};
use crate::runner::Verdict;
use crate::{pods, subject};

pub(super) async fn follows_a_readiness_flip(test: &Test) -> Result<Verdict> {
    pods::start(test, "web", 4).await?;
    test.serve_pool(pods::pool(test, "web"), 4).await?;
    let targets = subject::targets(&test.cluster, test.port).await?;
    let load = Load::start(test, "load", Plan { targets, rate: 200, keys: 200, connections: 8 }).await?;
    let digest = subject::agreed_digest(test, "web", Duration::from_secs(5)).await?;
    let before = load.trails().await?;
    let pod = pods::of(test, "web").await?.into_keys().next().context("there are four pods")?;

    pods::set_ready(test, &pod, false).await?;
    test.until_ready("web", 3).await?;
    load.until_every_key_is_asked_again().await?;
    let away = load.trails().await?;
    let was_there = before.places().into_iter().filter(|(_, place)| *place == pod).count();
    let moved = before.moved_until(&away);
    ensure!(
        was_there > 0 && moved.len() == was_there,
        "{} keys moved, {was_there} were on the pod",
        moved.len()
    );
    ensure!(away.places().values().all(|place| *place != pod), "keys are still on the pod that is not ready");

    pods::set_ready(test, &pod, true).await?;
    test.until_ready("web", 4).await?;
    load.until_every_key_is_asked_again().await?;
    let back = load.trails().await?;
    let strays = before.moved_until(&back);
    ensure!(strays.is_empty(), "{} keys did not come back: {strays:?}", strays.len());
    let digest_after = subject::agreed_digest(test, "web", Duration::from_secs(5)).await?;
    ensure!(digest == digest_after, "the table differs after the flip: {digest}, {digest_after}");
    let report = load.stop().await?;
    load::ensure_nothing_failed(&report)?;
    test.note(format!(
        "{was_there} of 200 keys moved and came back, table {digest} as before; {}",
        load::shown(&report)
    ));
    Ok(Verdict::Passed)
}
