//! Owns the agreement between the code and `manifests/`: the rights granted are the rights used, the flags
//! exist, and the samples make sense.

use std::collections::BTreeSet;
use std::path::Path;

use clap::Parser;
use serde::Deserialize;
use serde_json::{Value, json};

use super::api_server::Right;
use super::faults;
use super::fixtures::pool_resource;
use crate::settings::{Flags, Settings};

fn documents(path: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let text = std::fs::read_to_string(&path).unwrap();
    serde_yaml::Deserializer::from_str(&text).map(|document| Value::deserialize(document).unwrap()).collect()
}

fn of_kind<'a>(documents: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    documents.iter().filter(move |document| document["kind"] == kind)
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|item| item.as_str().unwrap().to_string()).collect()
}

fn granted() -> BTreeSet<Right> {
    let documents = documents("manifests/guideway.yaml");
    let rules = of_kind(&documents, "ClusterRole").chain(of_kind(&documents, "Role"));
    let rules = rules.flat_map(|role| role["rules"].as_array().unwrap());
    let mut granted = BTreeSet::new();
    for rule in rules {
        for group in strings(&rule["apiGroups"]) {
            for resource in strings(&rule["resources"]) {
                for verb in strings(&rule["verbs"]) {
                    granted.insert((group.clone(), resource.clone(), verb));
                }
            }
        }
    }
    granted
}

#[tokio::test(start_paused = true)]
async fn the_rights_granted_are_the_rights_used() {
    assert_eq!(granted(), faults::rights_used_in_a_life().await);
}

#[test]
fn no_right_is_granted_by_a_wildcard() {
    assert!(
        granted()
            .iter()
            .all(|(group, resource, verb)| [group, resource, verb].iter().all(|word| *word != "*"))
    );
}

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    flags: Flags,
}

#[test]
fn the_deployment_starts_with_flags_that_exist_and_time_to_leave() {
    let documents = documents("manifests/guideway.yaml");
    let pod = &of_kind(&documents, "Deployment").next().unwrap()["spec"]["template"]["spec"];
    let args = strings(&pod["containers"][0]["args"]);
    assert_eq!(args[0], "run");
    let settings = Settings::check(Command::try_parse_from(&args).unwrap().flags).unwrap();
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    let needed = settings.drain_delay + settings.drain_timeout + super::super::GOODBYE;
    assert!(grace > needed.as_secs(), "{grace} s for {needed:?}");
}

#[test]
fn samples_make_sense() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/samples");
    let mut pools = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = format!("manifests/samples/{}", entry.unwrap().file_name().to_str().unwrap());
        for pool in of_kind(&documents(&name), "LoadBalancerPool") {
            let mut pool = pool.clone();
            pool["metadata"]["uid"] = json!("uid");
            let read = pool_resource(&pool).wanted;
            assert!(read.is_ok(), "{name}: {read:?}");
            pools += 1;
        }
    }
    assert!(pools > 0);
}
