//! Owns the order of the scenarios and their verdicts: first those that live side by side, a few at a
//! time, then those that stop or overload something all of them share.

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use futures::future::LocalBoxFuture;
use futures::{FutureExt, StreamExt};

use crate::cluster::Cluster;
use crate::fixture::Test;
use crate::subject;

/// So many share the cluster at a time. Two cores carry all of it, API server included.
const SIDE_BY_SIDE: usize = 3;

/// A scenario and how it may run.
pub(crate) struct Scenario {
    pub name: &'static str,
    /// What holds when it passes.
    pub says: &'static str,
    pub company: Company,
    /// It has failed when it takes longer.
    pub limit: Duration,
    pub run: for<'a> fn(&'a Test) -> LocalBoxFuture<'a, Result<Verdict>>,
}

/// Whether other scenarios may run at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Company {
    Shared,
    Alone,
}

/// How a scenario ended that did not fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Passed,
    /// Something it needs is missing here; the text says what.
    NotRun(String),
}

struct Ended {
    name: &'static str,
    result: Result<Verdict>,
    notes: Vec<String>,
    took: Duration,
}

/// Runs the scenarios and prints a summary. Fails when one failed.
pub(crate) async fn run(scenarios: Vec<Scenario>) -> ExitCode {
    let started = Instant::now();
    let cluster = match prepare().await {
        Ok(cluster) => cluster,
        Err(error) => {
            eprintln!("the cluster is not ready for the scenarios: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let (shared, alone): (Vec<_>, Vec<_>) =
        scenarios.into_iter().partition(|it| it.company == Company::Shared);
    let run = |(number, scenario): (usize, Scenario)| run_one(&cluster, number, scenario);
    let count = shared.len();
    let side_by_side = futures::stream::iter(shared.into_iter().enumerate().map(run));
    let mut ended: Vec<Ended> = side_by_side.buffer_unordered(SIDE_BY_SIDE).collect().await;
    for (number, scenario) in alone.into_iter().enumerate() {
        ended.push(run_one(&cluster, count + number, scenario).await);
    }
    summarize(&ended, started.elapsed())
}

async fn prepare() -> Result<Cluster> {
    let cluster = Cluster::connect().await?;
    cluster.remove_leftovers().await?;
    subject::wait_until_serving(&cluster).await.context("Guideway is not serving")?;
    Ok(cluster)
}

async fn run_one(cluster: &Cluster, number: usize, scenario: Scenario) -> Ended {
    let Scenario { name, limit, run, .. } = scenario;
    let started = Instant::now();
    println!("{name}: begins");
    let test = match Test::begin(cluster.clone(), name, number).await {
        Ok(test) => test,
        Err(error) => return Ended { name, result: Err(error), notes: Vec::new(), took: started.elapsed() },
    };
    // A scenario that panics must not take the others and their clean-up along.
    let outcome = tokio::time::timeout(limit, AssertUnwindSafe(run(&test)).catch_unwind()).await;
    let result = match outcome {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(anyhow!("it panicked; the message stands above")),
        Err(_) => Err(anyhow!("it took longer than {limit:?}")),
    };
    if let Err(error) = &result {
        println!("{name}: FAILED: {error:#}");
    }
    let notes = test.end(result.is_err()).await;
    Ended { name, result, notes, took: started.elapsed() }
}

fn summarize(ended: &[Ended], took: Duration) -> ExitCode {
    println!("\n{:-<100}", "");
    for Ended { name, result, notes, took } in ended {
        let (word, detail) = match result {
            Ok(Verdict::Passed) => ("ok", String::new()),
            Ok(Verdict::NotRun(reason)) => ("NOT RUN", reason.clone()),
            Err(error) => ("FAILED", format!("{error:#}")),
        };
        println!("{word:8}{name} ({:.1} s) {detail}", took.as_secs_f64());
        notes.iter().for_each(|note| println!("        {note}"));
    }
    let count = |wanted: fn(&Result<Verdict>) -> bool| ended.iter().filter(|it| wanted(&it.result)).count();
    let failed = count(|result| result.is_err());
    let passed = count(|result| matches!(result, Ok(Verdict::Passed)));
    let skipped = ended.len() - failed - passed;
    println!(
        "{:-<100}\n{passed} passed, {failed} failed, {skipped} not run, {:.0} s",
        "",
        took.as_secs_f64()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
