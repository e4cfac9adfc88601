//! The end-to-end tests: every scenario in a namespace of its own, in the cluster of `KUBECONFIG`, where
//! Guideway is installed and the images `guideway:e2e` and `guideway-testbed:e2e` are loaded.
//! `e2e/run` prepares all that. Scenarios that disturb the others run alone, one after the other.

mod cluster;
mod fixture;
mod load;
mod node;
mod pods;
mod runner;
mod scenarios;
mod subject;

use std::process::ExitCode;

const USAGE: &str = "usage: e2e [--list] [WORD]…
Runs the scenarios whose name contains one of the words, or all of them.
KUBECONFIG names the cluster. GUIDEWAY_E2E_NODE_EXEC holds the words that run a command in a node
(for example: docker exec); scenarios that need it are not run without it.
GUIDEWAY_E2E_KEEP=1 keeps the namespaces of scenarios that failed.";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let (flags, words): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with('-'));
    let wanted = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word));
    let scenarios: Vec<_> = scenarios::all().into_iter().filter(|it| wanted(it.name)).collect();
    match flags.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] if scenarios.is_empty() => complain(&format!("no scenario is called like {words:?}\n{USAGE}")),
        // Scenarios share a thread, so their parts need no locks.
        [] => tokio::task::LocalSet::new().run_until(runner::run(scenarios)).await,
        ["--list"] => {
            scenarios.iter().for_each(|scenario| println!("{}: {}", scenario.name, scenario.says));
            ExitCode::SUCCESS
        }
        _ => complain(USAGE),
    }
}

fn complain(text: &str) -> ExitCode {
    eprintln!("{text}");
    ExitCode::from(2)
}
