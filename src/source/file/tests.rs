//! The file source on real files: edits, renames and swapped links as editors and Kubernetes make them.

use std::fmt::Debug;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::subscriber::DefaultGuard;

use super::reading::tests::{pool, tls_backend_pool, tls_pool};
use super::{Error, Options, PortProbe, follow, watch};
use crate::balance::pool::PortId;
use crate::balance::tls::TlsTerms;
use crate::handoff::{BindState, BindingsWriter, Reader, bindings, handoff};
use crate::metrics::Metrics;
use crate::readiness::Readiness;
use crate::source::Outlets;
use crate::source::credentials::tests::{Pair, authority, pair};
use crate::source::programmer::Programmer;

/// Long enough for a machine under load.
const SOON: Duration = Duration::from_secs(30);
/// So rarely that only the system can have told of a change.
const NEVER: Duration = Duration::from_secs(3600);

/// The port of the process itself.
const OWN_PORT: u16 = 9901;
/// A port that another program has.
const TAKEN_PORT: u16 = 8009;

/// A source that runs on files of its own.
struct Running {
    reader: Reader,
    readiness: Readiness,
    metrics: Metrics,
    ports: BindingsWriter,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
    log: UnboundedReceiver<String>,
    _logging: DefaultGuard,
}

impl Running {
    fn start(path: &Path, state_dir: Option<&Path>) -> Self {
        let (publisher, reader) = handoff();
        let (ports, ports_reader) = bindings(Some(PortId::Tcp(OWN_PORT)));
        let (logging, log) = capture_log();
        let readiness = Readiness::default();
        let metrics = Metrics::new(reader.clone(), ports_reader.clone());
        let stop = CancellationToken::new();
        let options = Options { path: path.into(), state_dir: state_dir.map(Into::into) };
        let outlets = Outlets {
            programmer: Programmer::new(publisher, metrics.control()),
            bindings: ports_reader,
            readiness: readiness.latch("pools"),
            metrics: metrics.control(),
        };
        let probe =
            PortProbe::new(
                |port| if port == PortId::Tcp(TAKEN_PORT) { Err("it is taken".into()) } else { Ok(()) },
            );
        let watch = watch::watch(path, NEVER);
        let task = tokio::spawn(follow(options, watch, outlets, probe, stop.clone()));
        Self { reader, readiness, metrics, ports, stop, task, log, _logging: logging }
    }

    /// Waits until what it looks at in the snapshot is this.
    async fn comes_to<T: PartialEq + Debug>(&mut self, look: impl Fn(&Self) -> T, wanted: T) {
        let reached = async {
            while look(self) != wanted {
                assert!(self.reader.changed().await, "the source ended");
            }
        };
        assert!(timeout(SOON, reached).await.is_ok(), "not {wanted:?} but {:?}", look(self));
    }

    /// Waits until exactly these ports are served.
    async fn serves(&mut self, ports: &[u16]) {
        let served = |it: &Self| it.reader.load().ports().map(|(port, _)| port).collect();
        let ports = ports.iter().copied().map(PortId::Tcp).collect();
        self.comes_to::<Vec<PortId>>(served, ports).await;
    }

    /// How many authorities each backend of TLS is known by.
    fn trusts(&self) -> Vec<usize> {
        let snapshot = self.reader.load();
        let groups = snapshot.pools().flat_map(|it| &it.pool.groups);
        groups.filter_map(|it| it.tls.as_ref()).map(|it| it.ca.roots.len()).collect()
    }

    /// The terms of every listener that speaks TLS.
    fn terms(&self) -> Vec<Arc<TlsTerms>> {
        let snapshot = self.reader.load();
        let listeners = snapshot.pools().flat_map(|it| &it.pool.listeners);
        listeners.filter_map(|it| it.tls.clone()).collect()
    }

    /// Waits until certificates of exactly these names are shown.
    async fn shows(&mut self, names: &[&str]) {
        let shown = |it: &Self| -> Vec<String> {
            let terms = it.terms();
            let certificates = terms.iter().flat_map(|it| &it.certificates);
            certificates.flat_map(|it| &it.names).map(ToString::to_string).collect()
        };
        self.comes_to(shown, names.iter().map(ToString::to_string).collect()).await;
    }

    /// Waits until the log says this.
    async fn says(&mut self, words: &str) {
        let mut seen = String::new();
        let said = async {
            while let Some(line) = self.log.recv().await {
                if line.contains(words) {
                    return;
                }
                seen += &line;
            }
        };
        assert!(timeout(SOON, said).await.is_ok(), "no `{words}` in:\n{seen}");
    }

    fn digest(&self) -> u64 {
        self.reader.load().pools().next().expect("a pool").digest
    }

    async fn end(self) -> Result<(), Error> {
        self.stop.cancel();
        self.task.await.unwrap()
    }
}

#[derive(Clone)]
struct Lines(UnboundedSender<String>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _nobody_listens = self.0.send(String::from_utf8_lossy(bytes).into_owned());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The log of this thread, line by line. The tests' runtimes have one thread.
fn capture_log() -> (DefaultGuard, UnboundedReceiver<String>) {
    let (lines, log) = unbounded_channel();
    let lines = Lines(lines);
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || lines.clone()).finish();
    (tracing::subscriber::set_default(subscriber), log)
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A folder and its file of pools, which says this.
fn pools(text: &str) -> (TempDir, PathBuf) {
    let folder = folder();
    let file = folder.path().join("pools.yaml");
    fs::write(&file, text).unwrap();
    (folder, file)
}

/// A source that serves a pool on this port from a file of its own.
async fn serving(port: u16) -> (TempDir, PathBuf, Running) {
    let (folder, file) = pools(&pool("a", port.into()));
    let mut running = Running::start(&file, None);
    running.serves(&[port]).await;
    (folder, file, running)
}

#[tokio::test]
async fn an_edited_file_is_in_force_at_once() {
    let (_folder, file, mut running) = serving(8001).await;
    assert!(running.readiness.is_ready());
    fs::write(&file, pool("a", 8002)).unwrap();
    running.serves(&[8002]).await;
    running.end().await.unwrap();
}

#[tokio::test]
async fn a_file_renamed_over_is_followed() {
    let (folder, file, mut running) = serving(8001).await;
    for port in [8002, 8003] {
        let beside = folder.path().join("pools.yaml~");
        fs::write(&beside, pool("a", port.into())).unwrap();
        fs::rename(&beside, &file).unwrap();
        running.serves(&[port]).await;
    }
    running.end().await.unwrap();
}

#[tokio::test]
async fn a_file_that_goes_away_and_comes_back_is_followed_by_its_relative_path_too() {
    let folder = folder();
    let to_root = std::env::current_dir().unwrap().components().skip(1).map(|_| "..").collect::<PathBuf>();
    let file = to_root.join(folder.path().join("pools.yaml").strip_prefix("/").unwrap());
    fs::write(&file, pool("a", 8001)).unwrap();
    let mut running = Running::start(&file, None);
    running.serves(&[8001]).await;
    for port in [8002, 8003] {
        fs::remove_file(&file).unwrap();
        running.says("cannot be read: No such file").await;
        fs::write(&file, pool("a", port)).unwrap();
        running.serves(&[port as u16]).await;
    }
    running.end().await.unwrap();
}

/// Puts a version of a volume in the place of the one before as Kubernetes does: `name -> ..data/name`,
/// `..data -> ..1`, and one rename swaps `..data`.
fn swap_in(volume: &Path, version: &str, fill: impl FnOnce(&Path)) {
    let data = volume.join(version);
    fs::create_dir(&data).unwrap();
    fill(&data);
    symlink(version, volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
}

#[tokio::test]
async fn a_swapped_configmap_volume_is_followed() {
    for as_folder in [false, true] {
        let folder = folder();
        let write = |version, port| {
            let fill = |data: &Path| fs::write(data.join("pools.yaml"), pool("a", port)).unwrap();
            swap_in(folder.path(), version, fill);
        };
        write("..1", 8001);
        let file = folder.path().join("pools.yaml");
        symlink("..data/pools.yaml", &file).unwrap();
        let mut running = Running::start(if as_folder { folder.path() } else { &file }, None);
        running.serves(&[8001]).await;
        write("..2", 8002);
        fs::remove_dir_all(folder.path().join("..1")).unwrap();
        running.serves(&[8002]).await;
        write("..3", 8003);
        running.serves(&[8003]).await;
        running.end().await.unwrap();
    }
}

/// A folder and one in it, with one file of a pool on this port.
fn pools_in_a_folder(port: u16) -> (TempDir, PathBuf) {
    let folder = folder();
    let pools = folder.path().join("pools");
    fill(&pools, port);
    (folder, pools)
}

fn fill(pools: &Path, port: u16) {
    fs::create_dir_all(pools).unwrap();
    fs::write(pools.join("a.yaml"), pool("a", port.into())).unwrap();
}

/// Edits of the file, by which the pool goes to the two ports behind this one, are followed.
async fn follows_edits(running: &mut Running, pools: &Path, port: u16) {
    for port in [port + 1, port + 2] {
        fs::write(pools.join("a.yaml"), pool("a", port.into())).unwrap();
        running.serves(&[port]).await;
    }
}

/// Puts another folder in the place of this one, in which the pool is on this port.
fn replace(pools: &Path, port: u16) {
    let beside = |name: String| pools.with_file_name(name);
    fill(&beside("next".into()), port);
    fs::rename(pools, beside(format!("before-{port}"))).unwrap();
    fs::rename(beside("next".into()), pools).unwrap();
}

#[tokio::test]
async fn a_folder_that_is_replaced_is_followed_as_the_one_before() {
    let (_folder, pools) = pools_in_a_folder(8001);
    let mut running = Running::start(&pools, None);
    running.serves(&[8001]).await;
    for port in [8002, 8005] {
        replace(&pools, port);
        running.serves(&[port]).await;
        follows_edits(&mut running, &pools, port).await;
    }
    running.end().await.unwrap();
}

#[tokio::test]
async fn a_folder_that_is_removed_and_made_again_is_followed() {
    let (_folder, pools) = pools_in_a_folder(8001);
    let mut running = Running::start(&pools, None);
    running.serves(&[8001]).await;
    for port in [8002, 8005] {
        fs::remove_dir_all(&pools).unwrap();
        running.says("cannot be read: No such file").await;
        fill(&pools, port);
        running.serves(&[port]).await;
        follows_edits(&mut running, &pools, port).await;
    }
    running.end().await.unwrap();
}

#[tokio::test]
async fn a_file_is_followed_where_a_folder_on_its_way_is_replaced() {
    for depth in ["", "b/c"] {
        let folder = folder();
        let replaced = folder.path().join("a");
        let file = replaced.join(depth).join("a.yaml");
        fill(&replaced.join(depth), 8001);
        let mut running = Running::start(&file, None);
        running.serves(&[8001]).await;
        for port in [8002, 8004] {
            fill(&folder.path().join("next").join(depth), port);
            fs::rename(&replaced, folder.path().join(format!("before-{port}"))).unwrap();
            fs::rename(folder.path().join("next"), &replaced).unwrap();
            running.serves(&[port]).await;
            fs::write(&file, pool("a", u32::from(port) + 1)).unwrap();
            running.serves(&[port + 1]).await;
        }
        running.end().await.unwrap();
    }
}

#[tokio::test]
async fn a_linked_file_of_a_folder_is_followed_to_where_it_is() {
    let (folder, pools) = pools_in_a_folder(8001);
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    fill(&one, 8002);
    fs::remove_file(pools.join("a.yaml")).unwrap();
    symlink("../one/a.yaml", pools.join("a.yaml")).unwrap();
    let mut running = Running::start(&pools, None);
    running.serves(&[8002]).await;
    for port in [8003, 8004] {
        fs::write(one.join("a.yaml"), pool("a", port.into())).unwrap();
        running.serves(&[port]).await;
    }
    fill(&two, 8005);
    symlink(two.join("a.yaml"), pools.join("new")).unwrap();
    fs::rename(pools.join("new"), pools.join("a.yaml")).unwrap();
    running.serves(&[8005]).await;
    for port in [8006, 8010] {
        fs::write(two.join("a.yaml"), pool("a", port.into())).unwrap();
        running.serves(&[port]).await;
        replace(&two, port + 1);
        running.serves(&[port + 1]).await;
    }
    running.end().await.unwrap();
}

#[tokio::test]
async fn files_of_a_folder_come_and_go_with_their_pools() {
    let folder = folder();
    fs::write(folder.path().join("a.yaml"), pool("a", 8001)).unwrap();
    fs::write(folder.path().join("notes.txt"), "not a pool").unwrap();
    let mut running = Running::start(folder.path(), None);
    running.serves(&[8001]).await;
    fs::write(folder.path().join("b.json"), serde_json::to_string(&json_of(&pool("b", 8002))).unwrap())
        .unwrap();
    running.serves(&[8001, 8002]).await;
    fs::remove_file(folder.path().join("a.yaml")).unwrap();
    running.serves(&[8002]).await;
    running.end().await.unwrap();
}

fn json_of(yaml: &str) -> serde_json::Value {
    serde_yaml::from_str(yaml).unwrap()
}

/// Two pools, each on its port.
fn two_pools(a: u32, b: u32) -> String {
    format!("{}---\n{}", pool("a", a), pool("b", b))
}

#[tokio::test]
async fn a_bad_edit_is_told_with_its_line_and_disturbs_nothing() {
    let (_folder, file) = pools(&two_pools(8001, 8002));
    let mut running = Running::start(&file, None);
    running.serves(&[8001, 8002]).await;
    fs::write(&file, two_pools(70_000, 8003)).unwrap();
    running.says("pools.yaml:7: spec.listeners[0].port: 70000 is not a port; use 1 to 65535").await;
    running.serves(&[8001, 8003]).await;
    assert!(running.metrics.scrape().unwrap().contains("guideway_config_errors 1"));
    fs::write(&file, "pools: [").unwrap();
    running.says("pools.yaml:2: ").await;
    running.serves(&[8001, 8003]).await;
    fs::remove_file(&file).unwrap();
    running.says("cannot be read: No such file").await;
    running.serves(&[8001, 8003]).await;
    fs::write(&file, pool("a", 8004)).unwrap();
    running.says("all mistakes are corrected").await;
    running.serves(&[8004]).await;
    assert!(running.metrics.scrape().unwrap().contains("guideway_config_errors 0"));
    running.end().await.unwrap();
}

/// A pool with a certificate from two files in a folder of their own.
fn with_certificate(folder: &Path, certificates: &Path) -> std::path::PathBuf {
    let (file, beside) = (folder.join("pools.yaml"), certificates.display());
    let terms = format!(
        "      certificateFiles:\n      - certificate: {beside}/tls.crt\n        key: {beside}/tls.key\n"
    );
    fs::write(&file, tls_pool(&terms)).unwrap();
    file
}

fn write_pair(folder: &Path, pair: &Pair) {
    fs::write(folder.join("tls.crt"), &pair.chain).unwrap();
    fs::write(folder.join("tls.key"), &pair.key).unwrap();
}

#[tokio::test]
async fn new_certificates_are_shown_and_a_bad_one_disturbs_nothing() {
    let (folder, certificates) = (folder(), folder());
    write_pair(certificates.path(), &pair(&["one.test"]));
    let file = with_certificate(folder.path(), certificates.path());
    let mut running = Running::start(&file, None);
    running.serves(&[8443]).await;
    running.shows(&["one.test"]).await;
    let terms = running.terms();
    let moved = fs::read_to_string(&file).unwrap().replace("port: 8443", "port: 8444");
    fs::write(&file, moved).unwrap();
    running.serves(&[8444]).await;
    assert!(Arc::ptr_eq(&terms[0], &running.terms()[0]), "clients keep their sessions");
    let two = pair(&["two.test"]);
    write_pair(certificates.path(), &two);
    running.shows(&["two.test"]).await;
    fs::write(certificates.path().join("tls.key"), "none").unwrap();
    running.says("pools.yaml:12: spec.listeners[0].tls.certificateFiles[0].key: ").await;
    assert!(running.metrics.scrape().unwrap().contains("guideway_config_errors 1"));
    running.shows(&["two.test"]).await;
    fs::remove_file(certificates.path().join("tls.key")).unwrap();
    running.says("tls.key cannot be read: No such file").await;
    running.shows(&["two.test"]).await;
    write_pair(certificates.path(), &two);
    running.says("all mistakes are corrected").await;
    write_pair(certificates.path(), &pair(&["three.test"]));
    running.shows(&["three.test"]).await;
    running.end().await.unwrap();
}

/// Puts a file in the place of another at once: one that is written in place is empty for a moment, which is a mistake
/// of its own.
fn put(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    fs::write(&beside, text).unwrap();
    fs::rename(beside, path).unwrap();
}

#[tokio::test]
async fn new_authorities_of_backends_are_trusted_and_bad_ones_disturb_nothing() {
    let (folder, certificates) = (folder(), folder());
    let (file, bundle) = (folder.path().join("pools.yaml"), certificates.path().join("ca.crt"));
    let terms = format!("      serverName: web.test\n      caFile: {}\n", bundle.display());
    fs::write(&bundle, authority("one")).unwrap();
    fs::write(&file, pool("a", 8001)).unwrap();
    let mut running = Running::start(&file, None);
    running.serves(&[8001]).await;
    assert!(running.trusts().is_empty());
    fs::write(&file, tls_backend_pool(&terms)).unwrap();
    running.comes_to(Running::trusts, vec![1]).await;
    put(&bundle, &(authority("one") + &authority("two")));
    running.comes_to(Running::trusts, vec![2]).await;
    put(&bundle, "none");
    running.says("pools.yaml:13: spec.backends[0].tls.caFile: ").await;
    assert!(running.metrics.scrape().unwrap().contains("guideway_config_errors 1"));
    assert_eq!(running.trusts(), [2]);
    put(&bundle, &authority("three"));
    running.comes_to(Running::trusts, vec![1]).await;
    running.end().await.unwrap();
}

#[tokio::test]
async fn a_pool_whose_authorities_are_missing_stays_as_it_was_or_is_not_served() {
    let folder = folder();
    let (file, bundle) = (folder.path().join("pools.yaml"), folder.path().join("ca.crt"));
    let terms = "      serverName: web.test\n      caFile: ca.crt\n";
    fs::write(&file, format!("{}---\n{}", tls_backend_pool(terms), pool("b", 8002))).unwrap();
    let mut running = Running::start(&file, None);
    running.says("ca.crt cannot be read: No such file").await;
    running.serves(&[8002]).await;
    fs::write(&bundle, authority("one")).unwrap();
    running.serves(&[8001, 8002]).await;
    assert_eq!(running.trusts(), [1]);
    running.end().await.unwrap();
}

#[tokio::test]
async fn the_certificates_of_a_swapped_volume_are_followed() {
    let (folder, certificates) = (folder(), folder());
    let write = |version, name| {
        swap_in(certificates.path(), version, |data| write_pair(data, &pair(&[name])));
    };
    write("..1", "one.test");
    for name in ["tls.crt", "tls.key"] {
        symlink(Path::new("..data").join(name), certificates.path().join(name)).unwrap();
    }
    let mut running = Running::start(&with_certificate(folder.path(), certificates.path()), None);
    running.shows(&["one.test"]).await;
    for (version, name) in [("..2", "two.test"), ("..3", "three.test")] {
        write(version, name);
        running.shows(&[name]).await;
    }
    running.end().await.unwrap();
}

#[tokio::test]
async fn the_certificates_of_a_replaced_folder_are_followed() {
    let (folder, above) = (folder(), folder());
    let certificates = above.path().join("tls");
    fs::create_dir(&certificates).unwrap();
    write_pair(&certificates, &pair(&["one.test"]));
    let mut running = Running::start(&with_certificate(folder.path(), &certificates), None);
    running.shows(&["one.test"]).await;
    for [replaced, edited] in [["two.test", "three.test"], ["four.test", "five.test"]] {
        fs::create_dir(above.path().join("next")).unwrap();
        write_pair(&above.path().join("next"), &pair(&[replaced]));
        fs::rename(&certificates, above.path().join(replaced)).unwrap();
        fs::rename(above.path().join("next"), &certificates).unwrap();
        running.shows(&[replaced]).await;
        write_pair(&certificates, &pair(&[edited]));
        running.shows(&[edited]).await;
    }
    running.end().await.unwrap();
}

#[tokio::test]
async fn an_edit_that_asks_for_a_port_of_another_program_leaves_the_pool_where_it_serves() {
    let (_folder, file, mut running) = serving(8001).await;
    fs::write(&file, pool("a", TAKEN_PORT.into())).unwrap();
    running.says("pools.yaml:7: spec.listeners[0].port: it is taken").await;
    running.says("pools with mistakes stay as they last were").await;
    running.serves(&[8001]).await;
    assert!(running.metrics.scrape().unwrap().contains("guideway_config_errors 1"));
    running.end().await.unwrap();
}

#[tokio::test]
async fn an_edit_that_asks_for_a_port_it_cannot_have_disturbs_nothing() {
    let (_folder, file) = pools(&two_pools(8001, 8002));
    let mut running = Running::start(&file, None);
    running.serves(&[8001, 8002]).await;
    for port in [8001, OWN_PORT] {
        fs::write(&file, two_pools(8001, port.into())).unwrap();
        running.says("pools.yaml:18: spec.listeners[0].port: ").await;
        running.says("pools with mistakes stay as they last were").await;
        running.serves(&[8001, 8002]).await;
        assert!(running.metrics.scrape().unwrap().contains("guideway_config_errors 1"));
    }
    fs::write(&file, two_pools(8001, 8003)).unwrap();
    running.serves(&[8001, 8003]).await;
    running.end().await.unwrap();
}

#[tokio::test]
async fn it_is_ready_once_there_is_a_pool() {
    let (_folder, file) = pools(&pool("a", 70_000));
    let mut running = Running::start(&file, None);
    running.says("70000 is not a port").await;
    running.says("pools with mistakes are not served before they are corrected").await;
    assert!(!running.readiness.is_ready());
    fs::write(&file, pool("a", 8001)).unwrap();
    running.serves(&[8001]).await;
    assert!(running.readiness.is_ready());
    running.end().await.unwrap();
}

#[tokio::test]
async fn a_path_that_is_not_there_at_start_is_an_error() {
    let folder = folder();
    let running = Running::start(&folder.path().join("none.yaml"), None);
    let error = running.task.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("none.yaml cannot be read: No such file"), "{error}");
}

#[tokio::test]
async fn a_port_that_cannot_be_opened_is_told() {
    let (_folder, _file, mut running) = serving(80).await;
    let port = PortId::Tcp(80);
    running.ports.report([(port, BindState::Failed { reason: "permission denied".into() })].into());
    running.says("pools.yaml:7: spec.listeners[0].port: pool default/a: permission denied").await;
    assert!(running.metrics.scrape().unwrap().contains("listener=\"web\"} 0\n"));
    running.ports.report([(port, BindState::Bound)].into());
    running.says("pools.yaml:7: spec.listeners[0].port: no longer closed").await;
    assert!(running.metrics.scrape().unwrap().contains("listener=\"web\"} 1\n"));
    running.end().await.unwrap();
}

/// Endpoints in the order given; whoever comes first on an empty table gets the first seat.
fn endpoints(addresses: &[u8]) -> String {
    let list: Vec<String> =
        addresses.iter().map(|it| format!("{{address: 192.0.2.{it}, port: 80}}")).collect();
    pool("a", 8001).replace("{address: 192.0.2.1, port: 80}", &list.join(", "))
}

#[tokio::test]
async fn seats_survive_a_restart() {
    let ((_folder, file), state) = (pools(&endpoints(&[5, 6])), folder());
    let mut running = Running::start(&file, Some(state.path()));
    running.serves(&[8001]).await;
    fs::write(&file, endpoints(&[1, 5, 6])).unwrap();
    running.says("total=3").await;
    let digest = running.digest();
    running.end().await.unwrap();

    let mut restarted = Running::start(&file, Some(state.path()));
    restarted.serves(&[8001]).await;
    assert_eq!(restarted.digest(), digest);
    restarted.end().await.unwrap();

    let mut forgetful = Running::start(&file, None);
    forgetful.serves(&[8001]).await;
    assert_ne!(forgetful.digest(), digest, "seats play no part in this test");
    forgetful.end().await.unwrap();
}

#[tokio::test]
async fn a_pipe_in_the_place_of_a_file_is_told_and_the_source_goes_on() {
    let folder = folder();
    let file = folder.path().join("pools.yaml");
    let mode = rustix::fs::Mode::from(0o600);
    rustix::fs::mkfifoat(rustix::fs::CWD, &file, mode).unwrap();
    let mut running = Running::start(&file, None);
    running.says("pools.yaml:1: cannot be read: it is a pipe; use a regular file\n").await;
    running.says("pools with mistakes are not served before they are corrected").await;
    fs::remove_file(&file).unwrap();
    fs::write(&file, pool("a", 8001)).unwrap();
    running.serves(&[8001]).await;
    running.end().await.unwrap();
}

#[tokio::test]
async fn a_file_of_a_folder_that_cannot_be_read_keeps_its_pools_and_one_that_is_gone_does_not() {
    let folder = folder();
    let [a, b, target] = ["a.yaml", "b.yaml", "target"].map(|name| folder.path().join(name));
    fs::write(&target, pool("a", 8001)).unwrap();
    std::os::unix::fs::symlink(&target, &a).unwrap();
    fs::write(&b, pool("b", 8002)).unwrap();
    let mut running = Running::start(folder.path(), None);
    running.serves(&[8001, 8002]).await;
    fs::remove_file(&target).unwrap();
    running.says("a.yaml:1: cannot be read: it is a link that leads to no file; correct or remove it").await;
    running.says("pools with mistakes stay as they last were").await;
    assert!(running.metrics.scrape().unwrap().contains("\nguideway_config_errors 1\n"));
    running.serves(&[8001, 8002]).await;
    fs::remove_file(&a).unwrap();
    running.serves(&[8002]).await;
    running.end().await.unwrap();
}

#[tokio::test]
async fn a_state_directory_that_vanished_gets_the_seats_of_every_pool_again() {
    let ((_folder, file), state) = (pools(&two_pools(8001, 8002)), folder());
    let mut running = Running::start(&file, Some(state.path()));
    running.serves(&[8001, 8002]).await;
    fs::remove_dir_all(state.path()).unwrap();
    running.end().await.unwrap();
    for name in ["default.a.json", "default.b.json"] {
        assert!(state.path().join(name).exists(), "{name} is missing");
    }
}

#[tokio::test]
async fn a_table_too_small_for_its_endpoints_is_told() {
    let (_folder, file) = pools(&(endpoints(&[1, 2, 3]) + "  algorithm: {tableSize: 251}\n"));
    let mut running = Running::start(&file, None);
    running.says("tableSize 251 gives 3 seats less than 100 slots each").await;
    running.end().await.unwrap();
}
