//! Commands whose output nobody reads to its end.
#![allow(missing_docs, clippy::unwrap_used)]

use std::process::Command;

const POOL: &str = "\
apiVersion: guideway.dev/v1alpha1
kind: LoadBalancerPool
metadata: {name: web}
spec:
  listeners: [{name: web, port: 80}]
  backends: [{name: all, endpoints: [{address: 192.0.2.1, port: 80}]}]
";

#[test]
fn commands_end_quietly_when_nobody_reads_on() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pools.yaml");
    std::fs::write(&file, POOL).unwrap();
    let file = file.to_str().unwrap();
    for arguments in [vec!["check", file], vec!["plan", file, "--scale", "all=1..2"], vec!["crd"]] {
        let (reading, writing) = std::io::pipe().unwrap();
        drop(reading);
        let (out, err) = (writing.try_clone().unwrap(), writing);
        let mut command = Command::new(env!("CARGO_BIN_EXE_guideway"));
        let status = command.args(&arguments).stdout(out).stderr(err).status().unwrap();
        assert_eq!(status.code(), Some(0), "{arguments:?}");
    }
    let (reading, writing) = std::io::pipe().unwrap();
    drop(reading);
    let mut command = Command::new(env!("CARGO_BIN_EXE_guideway"));
    let status = command.args(["plan", "/nowhere", "--scale", "all=1..2"]).stderr(writing).status().unwrap();
    assert_eq!(status.code(), Some(1), "a mistake that cannot be told");
}
