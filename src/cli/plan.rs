//! Owns `guideway plan`: which share of the keys a scaling or a rolling update would move, by the very code
//! that serves traffic, and beside it what the paper's table would do.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::say;
use crate::balance::plan::{self, Change, Endpoints, Movement, Outcome, Stage};
use crate::balance::pool::{Fill, Pool, PoolId};
use crate::source::file::inspection;
use crate::source::file::reading::printable;
use crate::source::reach::Target;
use crate::source::translate::{BackendSource, Translated};

/// What is going to happen to which pool.
#[derive(Args, Debug)]
pub(super) struct Flags {
    /// File or folder with the pool; - is standard input, and a pipe is read to its end
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Plan that a backend goes from so many endpoints to so many: stable=10..14
    #[arg(
        long,
        value_name = "BACKEND=FROM..TO",
        required_unless_present = "rollout",
        conflicts_with = "rollout"
    )]
    scale: Option<Scale>,

    /// Plan a rolling update of all endpoints of a backend
    #[arg(long, value_name = "BACKEND")]
    rollout: Option<String>,

    /// The pool, by name or namespace/name; needed where the file holds several
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,

    /// Plan for `guideway run --file`, where there are no Services
    #[arg(long)]
    standalone: bool,

    /// Endpoints of the backends that are Services: N for all of them or BACKEND=N for one [default: 10]
    #[arg(long, value_name = "N", value_delimiter = ',')]
    replicas: Vec<Replicas>,

    /// Endpoints a rolling update may have above the number wanted, as a number or percentage
    #[arg(long, value_name = "N", default_value = "25%")]
    max_surge: Amount,

    /// Endpoints that may be missing during a rolling update, as a number or percentage
    #[arg(long, value_name = "N", default_value = "25%")]
    max_unavailable: Amount,

    /// Form of the output
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// More endpoints than seats cannot be planned.
const ENDPOINTS_MAX: u32 = 60_000;

/// Prints the plan. Fails when the file holds no such pool or backend.
pub(super) fn execute(flags: &Flags) -> anyhow::Result<ExitCode> {
    let translated = find(flags)?;
    let stage = stage(&translated, flags)?;
    let change = change(&stage, flags)?;
    let seats = plan::play(&stage, &change, Fill::Seats);
    let paper = plan::play(&stage, &change, Fill::Paper);
    let text = match flags.output {
        Output::Text => table(&stage.pool, &change, &stage, &seats, &paper)?,
        Output::Json => format!("{:#}\n", report(&stage.pool, &change, &stage, &seats, &paper)),
    };
    say(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn find(flags: &Flags) -> anyhow::Result<Translated> {
    let target = if flags.standalone { Target::Standalone } else { Target::Cluster };
    let inspection = inspection::inspect(std::slice::from_ref(&flags.file), target, None)?;
    let is_meant =
        |id: &PoolId| flags.pool.as_ref().is_none_or(|name| *name == id.to_string() || *name == *id.name);
    let names: Vec<String> = inspection.pools.iter().map(|(_, it)| it.pool.id.to_string()).collect();
    let mut meant = inspection.pools.into_iter().map(|(_, it)| it).filter(|it| is_meant(&it.pool.id));
    let refused = inspection.refused.iter().find(|id| is_meant(id));
    match (meant.next(), meant.next()) {
        (Some(pool), None) => Ok(pool),
        (Some(_), Some(_)) => bail!("which pool? name one with --pool: {}", names.join(", ")),
        (None, _) if !inspection.problems.is_empty() => {
            let problems: Vec<String> = inspection.problems.iter().map(ToString::to_string).collect();
            bail!("{}\n{}", headline(refused, target), problems.join("\n"))
        }
        (None, _) if names.is_empty() => bail!("{} holds no pool", flags.file.display()),
        (None, _) => bail!("no pool of that name; --pool is one of {}", names.join(", ")),
    }
}

/// What the mistakes in a file have to do with there being no plan.
fn headline(refused: Option<&PoolId>, target: Target) -> String {
    match (refused, target) {
        (None, _) => "no pool to plan for".into(),
        (Some(id), Target::Standalone) => {
            format!("pool {} has mistakes; correct them first", printable(&id.to_string()))
        }
        (Some(id), Target::Cluster) => format!(
            "pool {} has mistakes; correct them first, or set --standalone if it is for `guideway run --file`",
            printable(&id.to_string())
        ),
    }
}

fn stage(translated: &Translated, flags: &Flags) -> anyhow::Result<Stage> {
    let mut groups = BTreeMap::new();
    for backend in &translated.backends {
        let (group, endpoints) = match backend {
            BackendSource::Service { group, .. } => (group, Endpoints::Pods(replicas(flags, group))),
            BackendSource::Endpoints { group, members } => (group, Endpoints::Fixed(members.clone())),
        };
        groups.insert(group.clone(), endpoints);
    }
    for unknown in flags.replicas.iter().filter_map(|it| it.backend.as_deref()) {
        ensure!(groups.contains_key(unknown), "--replicas: {}", no_backend(unknown, &groups));
    }
    if let Some(scale) = &flags.scale {
        change_size(&mut groups, &scale.backend, scale.from).context("--scale")?;
    }
    if let Some(backend) = &flags.rollout {
        let now = groups.get(backend.as_str()).map_or(0, count);
        change_size(&mut groups, backend, now).context("--rollout")?;
    }
    let all: u32 = groups.values().map(count).sum();
    ensure!(all <= ENDPOINTS_MAX, "{all} endpoints are too many; plan for at most {ENDPOINTS_MAX}");
    Ok(Stage { pool: translated.pool.clone(), groups })
}

/// The backend that changes consists of pods from now on: fixed addresses neither scale nor roll by themselves.
fn change_size(groups: &mut BTreeMap<Arc<str>, Endpoints>, backend: &str, size: u32) -> anyhow::Result<()> {
    let reason = no_backend(backend, groups);
    *groups.get_mut(backend).context(reason)? = Endpoints::Pods(size);
    Ok(())
}

fn no_backend(name: &str, groups: &BTreeMap<Arc<str>, Endpoints>) -> String {
    let names: Vec<&str> = groups.keys().map(|it| &**it).collect();
    format!("the pool has no backend {name}; it has {}", names.join(", "))
}

fn replicas(flags: &Flags, group: &str) -> u32 {
    let of_group = flags.replicas.iter().rev().find(|it| it.backend.as_deref() == Some(group));
    let of_all = || flags.replicas.iter().rev().find(|it| it.backend.is_none());
    of_group.or_else(of_all).map_or(10, |it| it.count)
}

fn count(endpoints: &Endpoints) -> u32 {
    match endpoints {
        Endpoints::Pods(count) => *count,
        Endpoints::Fixed(members) => members.len() as u32,
    }
}

fn change(stage: &Stage, flags: &Flags) -> anyhow::Result<Change> {
    if let Some(scale) = &flags.scale {
        ensure!(scale.to <= ENDPOINTS_MAX, "--scale: at most {ENDPOINTS_MAX} endpoints");
        return Ok(Change::Scale { group: scale.backend.as_str().into(), to: scale.to });
    }
    let group: Arc<str> = flags.rollout.as_deref().context("set --scale or --rollout")?.into();
    let wanted = stage.groups.get(&group).map_or(0, count);
    // As a Deployment rounds them: up what may be added, down what may be missing.
    let max_surge = flags.max_surge.of(wanted, u32::div_ceil);
    let max_unavailable = flags.max_unavailable.of(wanted, |a, b| a / b);
    ensure!(
        max_surge + max_unavailable > 0,
        "--max-surge and --max-unavailable are both 0: nothing could ever move"
    );
    Ok(Change::Rollout { group, max_surge, max_unavailable })
}

fn title(pool: &Pool, change: &Change, stage: &Stage) -> String {
    let now = |group: &Arc<str>| stage.groups.get(group).map_or(0, count);
    match change {
        Change::Scale { group, to } => {
            format!("pool {}: {group} goes from {} to {to} endpoints", pool.id, now(group))
        }
        Change::Rollout { group, max_surge, max_unavailable } => format!(
            "pool {}: rolling update of the {} endpoints of {group}, at most {max_surge} more and {max_unavailable} fewer",
            pool.id,
            now(group)
        ),
    }
}

/// Columns of the text; parts of all keys in percent.
fn table(
    pool: &Pool,
    change: &Change,
    stage: &Stage,
    seats: &Outcome,
    paper: &Outcome,
) -> Result<String, std::fmt::Error> {
    let mut text = format!("{}\n\n", title(pool, change, stage));
    let width = pool.groups.iter().map(|it| it.name.len()).max().unwrap_or(0).max("paper Maglev".len());
    writeln!(
        text,
        "{:width$}  {:>9}  {:>9}  {:>9}  {:>11}  {:>9}  {:>10}",
        "BACKEND", "BEFORE", "AFTER", "MOVED", "UNAVOIDABLE", "MOVES", "MOST MOVES"
    )?;
    let rows = seats.groups.iter().map(|(name, movement)| (&**name, movement));
    for (name, it) in rows.chain([("all", &seats.total), ("paper Maglev", &paper.total)]) {
        writeln!(
            text,
            "{name:width$}  {:>9}  {:>9}  {:>9}  {:>11}  {:>9}  {:>10}",
            percent(it.before),
            percent(it.after),
            percent(it.moved),
            percent(it.unavoidable),
            percent(it.moves),
            it.most_moves
        )?;
    }
    text.push_str(LEGEND);
    Ok(text)
}

const LEGEND: &str = "
Parts of all keys. BEFORE and AFTER: served by the backend. MOVED: of those before, keys that change their endpoint
at least once. UNAVOIDABLE: of those, whose endpoint leaves or must give keys up. MOVES: all changes of endpoint on
the way. MOST MOVES: of a single key.
";

fn percent(part: f64) -> String {
    format!("{:.2} %", part * 100.0)
}

fn report(pool: &Pool, change: &Change, stage: &Stage, seats: &Outcome, paper: &Outcome) -> Value {
    let outcome = |it: &Outcome| {
        let groups = it.groups.iter().map(|(name, movement)| (name.to_string(), object(movement)));
        json!({"backends": groups.collect::<serde_json::Map<_, _>>(), "total": object(&it.total)})
    };
    json!({
        "pool": pool.id.to_string(),
        "change": title(pool, change, stage),
        "seats": outcome(seats),
        "paper": outcome(paper),
    })
}

fn object(it: &Movement) -> Value {
    json!({
        "before": it.before,
        "after": it.after,
        "moved": it.moved,
        "unavoidable": it.unavoidable,
        "moves": it.moves,
        "mostMoves": it.most_moves,
    })
}

/// `stable=10..14`.
#[derive(Clone, Debug, PartialEq)]
struct Scale {
    backend: String,
    from: u32,
    to: u32,
}

impl FromStr for Scale {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = || {
            let (backend, sizes) = text.split_once('=')?;
            let (from, to) = sizes.split_once("..")?;
            Some(Self { backend: backend.into(), from: from.parse().ok()?, to: to.parse().ok()? })
        };
        parsed().ok_or_else(|| "write BACKEND=FROM..TO, such as stable=10..14".into())
    }
}

/// `10`, or `stable=10`.
#[derive(Clone, Debug, PartialEq)]
struct Replicas {
    backend: Option<String>,
    count: u32,
}

impl FromStr for Replicas {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (backend, count) = text.split_once('=').map_or((None, text), |(name, count)| (Some(name), count));
        let count = count.parse().map_err(|_| "write N or BACKEND=N, such as stable=10".to_string())?;
        Ok(Self { backend: backend.map(Into::into), count })
    }
}

/// `3`, or `25%`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Amount {
    Number(u32),
    Percent(u32),
}

impl Amount {
    fn of(self, whole: u32, divide: fn(u32, u32) -> u32) -> u32 {
        match self {
            Self::Number(number) => number,
            Self::Percent(percent) => divide(whole * percent, 100),
        }
    }
}

impl FromStr for Amount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = match text.strip_suffix('%') {
            Some(percent) => percent.parse().ok().filter(|it| *it <= 100).map(Self::Percent),
            None => text.parse().ok().filter(|it| *it <= ENDPOINTS_MAX).map(Self::Number),
        };
        parsed.ok_or_else(|| "write a number or a percentage up to 100%".into())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        flags: Flags,
    }

    const FILE: &str = "\
apiVersion: guideway.dev/v1alpha1
kind: LoadBalancerPool
metadata: {name: web, namespace: shop}
spec:
  listeners: [{name: web, port: 80}]
  algorithm: {tableSize: 4093}
  backends:
  - {name: stable, weight: 3, service: {name: web, port: 80}}
  - {name: outside, weight: 1, endpoints: [{address: 192.0.2.1, port: 80}, {address: 192.0.2.2, port: 80}]}
";

    fn plan(arguments: &[&str]) -> anyhow::Result<(Stage, Change)> {
        plan_of(FILE, arguments)
    }

    fn plan_of(text: &str, arguments: &[&str]) -> anyhow::Result<(Stage, Change)> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pools.yaml");
        std::fs::write(&file, text).unwrap();
        let file = file.to_str().unwrap();
        let flags = Command::try_parse_from([&["plan", file], arguments].concat())?.flags;
        let stage = stage(&find(&flags)?, &flags)?;
        let change = change(&stage, &flags)?;
        Ok((stage, change))
    }

    fn check(arguments: &[&str], expected: &str) {
        let (stage, change) = plan(arguments).unwrap();
        assert_eq!(title(&stage.pool, &change, &stage), expected);
    }

    #[test]
    fn the_change_is_what_the_flags_say() {
        check(&["--scale", "stable=3..5"], "pool shop/web: stable goes from 3 to 5 endpoints");
        check(
            &["--scale", "outside=2..1", "--pool", "shop/web"],
            "pool shop/web: outside goes from 2 to 1 endpoints",
        );
        check(
            &["--rollout", "stable", "--replicas", "stable=10,3"],
            "pool shop/web: rolling update of the 10 endpoints of stable, at most 3 more and 2 fewer",
        );
        check(
            &["--rollout", "outside", "--max-surge", "1", "--max-unavailable", "0"],
            "pool shop/web: rolling update of the 2 endpoints of outside, at most 1 more and 0 fewer",
        );
    }

    fn check_refused(arguments: &[&str], expected: &str) {
        let error = format!("{:#}", plan(arguments).unwrap_err());
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn what_cannot_be_planned_is_refused_with_a_way_out() {
        check_refused(&[], "--scale");
        check_refused(&["--scale", "stable=3"], "write BACKEND=FROM..TO, such as stable=10..14");
        check_refused(
            &["--scale", "none=1..2"],
            "--scale: the pool has no backend none; it has outside, stable",
        );
        check_refused(&["--rollout", "stable", "--pool", "shop"], "--pool is one of shop/web");
        check_refused(
            &["--rollout", "stable", "--replicas", "none=3"],
            "--replicas: the pool has no backend none",
        );
        check_refused(&["--rollout", "stable", "--max-surge=0", "--max-unavailable=0"], "both 0");
        check_refused(&["--scale", "stable=1..70000"], "at most 60000");
    }

    #[test]
    fn what_a_process_of_its_own_serves_can_be_planned_for_it_alone() {
        let (text, _) = FILE.rsplit_once("  - {name: stable").unwrap();
        let text = format!("{text}  - {{name: local, endpoints: [{{address: 127.0.0.1, port: 80}}]}}\n");
        let (_, change) = plan_of(&text, &["--rollout", "local", "--standalone"]).unwrap();
        assert!(matches!(change, Change::Rollout { group, .. } if &*group == "local"));
        let error = plan_of(&text, &["--rollout", "local"]).unwrap_err().to_string();
        let headline = "pool shop/web has mistakes; correct them first, or set --standalone if it is for";
        assert!(error.starts_with(headline) && error.contains("means Guideway's own pod"), "{error}");
        let error = plan_of(FILE, &["--rollout", "stable", "--standalone"]).unwrap_err().to_string();
        assert!(error.starts_with("pool shop/web has mistakes; correct them first\n"), "{error}");
    }

    #[test]
    fn text_and_json_tell_the_same() {
        let (stage, change) = plan(&["--scale", "stable=3..4"]).unwrap();
        let (seats, paper) =
            (plan::play(&stage, &change, Fill::Seats), plan::play(&stage, &change, Fill::Paper));
        let text = table(&stage.pool, &change, &stage, &seats, &paper).unwrap();
        let report = report(&stage.pool, &change, &stage, &seats, &paper);
        let moved = report["seats"]["backends"]["stable"]["moved"].as_f64().unwrap();
        assert!(
            text.lines().any(|line| line.starts_with("stable") && line.contains(&percent(moved))),
            "{text}"
        );
        let outside = report["seats"]["backends"]["outside"]["after"].as_f64().unwrap();
        assert!((outside - 0.25).abs() < 0.001, "{report}");
        assert!(report["paper"]["total"]["moved"].as_f64().unwrap() > moved);
    }
}
