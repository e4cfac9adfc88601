//! `guideway demo` as people start it: its own process, its own ports, what it prints.
#![allow(missing_docs, clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The proxy's port, the ten ports of the backends and that of the metrics.
const PORTS: u16 = 12;

/// Ends the demo also when the test fails.
struct Demo(Child);

impl Demo {
    fn start(first_port: u16, arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_guideway"));
        command.args([
            "demo",
            "--port",
            &first_port.to_string(),
            "--backend-port",
            &(first_port + 1).to_string(),
        ]);
        command.arg(format!("--metrics-address=127.0.0.1:{}", first_port + PORTS - 1)).args(arguments);
        Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    fn terminate(&self) {
        let status = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One test at a time: a process that another test starts holds the sockets of this one from its fork to
/// its exec, so that a port let go is not free at once.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A row of ports that nobody uses at the moment, and the sockets that show it.
fn free_ports() -> (u16, Vec<TcpListener>) {
    let row = |first: u16| -> std::io::Result<Vec<_>> {
        (first..first + PORTS).map(|port| TcpListener::bind(("127.0.0.1", port))).collect()
    };
    let start = 20_000 + (std::process::id() % 100) as u16 * 20;
    (start..30_000).step_by(20).find_map(|first| Some((first, row(first).ok()?))).unwrap()
}

/// The numbers in a text, in order.
fn numbers(text: &str) -> Vec<u64> {
    text.split(|it: char| !it.is_ascii_digit()).filter_map(|it| it.parse().ok()).collect()
}

#[test]
fn few_keys_move_when_a_backend_goes_and_all_come_back_with_it() {
    let _turn = alone();
    let (first_port, sockets) = free_ports();
    drop(sockets);
    let mut demo = Demo::start(first_port, &["--load", "--rate=200", "--keys=100", "--switch=2s"]);
    let mut lines = BufReader::new(demo.0.stdout.take().unwrap()).lines().map(Result::unwrap);

    let introduction = lines.next().expect("an introduction");
    for port in [first_port, first_port + PORTS - 1] {
        assert!(introduction.contains(&format!("http://127.0.0.1:{port}")), "{introduction}");
    }
    let off = lines.by_ref().find(|line| line.contains("Backend-2 off")).expect("a switch off");
    let [_, _, moved, keys, _, _, answers, had_been] = numbers(&off)[..] else { panic!("{off}") };
    assert_eq!(keys, 100, "{off}");
    assert!(moved > 0 && moved < 40, "a tenth was to move: {off}");
    assert_eq!((moved, moved), (answers, had_been), "table, answers and the backend's keys differ: {off}");

    let on = lines.by_ref().find(|line| line.contains("Backend-2 on")).expect("a switch on");
    assert_eq!(numbers(&on)[2], moved, "{on}");
    assert!(on.contains("the table is the one from before"), "{on}");

    demo.terminate();
    let last = lines.last().unwrap();
    assert!(last.ends_with(" 0 failed"), "{last}");
    assert!(demo.0.wait().unwrap().success());
}

#[test]
fn every_beat_switches_also_with_a_slow_load() {
    let _turn = alone();
    let (first_port, sockets) = free_ports();
    drop(sockets);
    let mut demo = Demo::start(first_port, &["--load", "--rate=200", "--switch=1s"]);
    let lines = BufReader::new(demo.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let switches = lines.filter(|line| line.contains(" slots") && line.contains(" s  Backend-")).take(4);
    let switches: Vec<String> = switches.collect();
    for (line, (switch, second)) in
        switches.iter().zip([("2 off", 1), ("2 on", 2), ("5 off", 3), ("5 on", 4)])
    {
        assert!(line.contains(&format!("Backend-{switch}: ")), "{line}");
        // A busy machine may be late, but not by as much as a wait for a thousand keys.
        assert!((second..second + 5).contains(&numbers(line)[0]), "{line}");
        let numbers = numbers(line);
        assert_eq!(numbers[2], numbers[6], "table and answers differ: {line}");
    }
}

#[test]
fn a_beat_too_short_for_the_keys_is_refused_with_what_to_do() {
    for (arguments, expected) in [
        (&["--load", "--rate=200", "--keys=1000", "--switch=1s"][..], "30 keys can be followed; use fewer"),
        (&["--load", "--rate=1", "--switch=1s"], "no key can be followed; use a higher --rate"),
        (&["--switch=999ms"], "use 1s or more"),
        (&["--switch", "-1s"], "\"-1s\" is no duration"),
    ] {
        let mut demo = Demo::start(1, arguments);
        let said = std::io::read_to_string(demo.0.stderr.take().unwrap()).unwrap();
        assert_eq!(demo.0.wait().unwrap().code(), Some(2), "{said}");
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn a_port_that_is_taken_is_named_with_the_flag_that_helps() {
    let _turn = alone();
    for (taken, flag) in [(0, "--port"), (1, "--backend-port"), (usize::from(PORTS) - 1, "--metrics-address")]
    {
        let (first_port, mut sockets) = free_ports();
        let kept = sockets.swap_remove(taken);
        drop(sockets);
        let mut demo = Demo::start(first_port, &["--for=1s"]);
        let said = std::io::read_to_string(demo.0.stderr.take().unwrap()).unwrap();
        assert_eq!(demo.0.wait().unwrap().code(), Some(1), "{said}");
        let address = kept.local_addr().unwrap().to_string();
        assert!(said.contains(&address) && said.contains(flag), "{flag}: {said}");
    }
}
