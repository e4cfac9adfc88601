//! Datagrams: those of one client's address and port are a flow, which keeps its backend.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use guideway::balance::backend::State;
use guideway::balance::pool::Protocol;
use guideway::proxy::Limits;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::stage::{Setup, Stage, noise};

const FLOWS: &str = "guideway_connections{namespace=\"shop\",pool=\"web\"}";
/// Nothing in a test takes this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(10);
/// Long enough to notice what should not come.
const SILENCE: Duration = Duration::from_millis(300);

/// One end of a flow.
struct End(UdpSocket);

impl End {
    async fn new() -> Self {
        Self(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap())
    }

    /// A client of the proxy.
    async fn client(stage: &Stage) -> Self {
        let end = Self::new().await;
        end.0.connect((Ipv4Addr::LOCALHOST, stage.port)).await.unwrap();
        end
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    async fn send(&self, bytes: impl AsRef<[u8]>) {
        self.0.send(bytes.as_ref()).await.unwrap();
    }

    /// The next datagram and who sent it.
    async fn receive(&self) -> (Vec<u8>, SocketAddr) {
        let mut space = vec![0; 70_000];
        let (length, from) =
            timeout(PATIENCE, self.0.recv_from(&mut space)).await.expect("nothing comes").unwrap();
        space.truncate(length);
        (space, from)
    }

    async fn receive_text(&self) -> String {
        String::from_utf8(self.receive().await.0).unwrap()
    }

    async fn hears_nothing(&self) -> bool {
        timeout(SILENCE, self.0.recv_from(&mut [0; 100])).await.is_err()
    }

    /// As a backend, answers every datagram with this text for as long as the test runs.
    fn answer_all(self, text: &'static str) {
        tokio::spawn(async move {
            loop {
                let (_, from) = self.receive().await;
                self.0.send_to(text.as_bytes(), from).await.unwrap();
            }
        });
    }
}

fn setup() -> Setup {
    Setup { protocol: Protocol::Udp, ..Setup::default() }
}

fn with_limits(change: impl FnOnce(&mut Limits)) -> Setup {
    let mut setup = setup();
    change(&mut setup.limits);
    setup
}

fn retried() -> String {
    "guideway_retries_total{namespace=\"shop\",pool=\"web\",reason=\"connect_refused\"}".into()
}

fn refused(limit: &str) -> String {
    format!("guideway_connections_refused_total{{limit=\"{limit}\"}}")
}

/// An address where nobody receives.
async fn nobody() -> SocketAddr {
    End::new().await.address()
}

#[tokio::test]
async fn datagrams_pass_both_ways_whole_and_one_by_one() {
    let backend = End::new().await;
    let stage = Stage::with(Setup { workers: 2, ..setup() }, &[backend.address()]).await;
    let client = End::client(&stage).await;
    for size in [5, 0, 1_400, 65_507] {
        let (question, answer) = (noise(size, 1), noise(size, 2));
        client.send(&question).await;
        let (came, flow) = backend.receive().await;
        assert!(came == question, "{size} bytes to the backend");
        backend.0.send_to(&answer, flow).await.unwrap();
        assert!(client.receive().await.0 == answer, "{size} bytes to the client");
    }
    let labels = "namespace=\"shop\",pool=\"web\"";
    for direction in ["received", "sent"] {
        stage.settles(&format!("guideway_datagrams_total{{{labels},direction=\"{direction}\"}}"), 4.0).await;
        stage.settles(&format!("guideway_bytes_total{{{labels},direction=\"{direction}\"}}"), 66_912.0).await;
    }
    stage.settles(FLOWS, 1.0).await;
}

#[tokio::test]
async fn a_flow_keeps_its_backend_when_the_table_changes_and_new_ones_follow_the_table() {
    let (one, two) = (End::new().await, End::new().await);
    let mut stage = Stage::with(setup(), &[one.address()]).await;
    let (client, other) = (End::client(&stage).await, End::client(&stage).await);
    client.send("a").await;
    let (_, flow) = one.receive().await;
    other.send("b").await;
    assert_ne!(one.receive().await.1, flow, "another port of a client is another flow");
    // The client's key belongs to the new one in one of the two orders.
    for backends in [[one.address(), two.address()], [two.address(), one.address()]] {
        stage.publish(&backends, State::Ready);
        stage.settles(FLOWS, 2.0).await;
        client.send("again").await;
        assert_eq!(one.receive().await, (b"again".to_vec(), flow));
    }
    let addresses = [one.address(), two.address()];
    one.answer_all("one");
    two.answer_all("two");
    let mut answers = Vec::new();
    for backends in [addresses, [addresses[1], addresses[0]]] {
        stage.publish(&backends, State::Ready);
        let late = End::client(&stage).await;
        late.send("c").await;
        answers.push(late.receive_text().await);
    }
    answers.sort();
    assert_eq!(answers, ["one", "two"]);
}

#[tokio::test]
async fn a_flow_leaves_a_backend_that_is_gone_with_its_next_datagram() {
    let (one, two) = (End::new().await, End::new().await);
    let mut stage = Stage::with(setup(), &[one.address()]).await;
    let client = End::client(&stage).await;
    client.send("a").await;
    let (_, flow) = one.receive().await;
    stage.publish(&[two.address()], State::Ready);
    // The pool is looked at once per tick.
    tokio::time::sleep(SILENCE).await;
    one.0.send_to(b"late answer", flow).await.unwrap();
    assert_eq!(client.receive_text().await, "late answer");
    client.send("b").await;
    assert_eq!(two.receive().await.0, b"b");
    assert!(one.hears_nothing().await);
    stage.settles(FLOWS, 1.0).await;
}

#[tokio::test]
async fn a_flow_stays_with_a_backend_that_terminates_for_the_drain_timeout() {
    let backend = End::new().await;
    let setup = Setup { drain_timeout: Duration::from_millis(600), ..setup() };
    let mut stage = Stage::with(setup, &[backend.address()]).await;
    let client = End::client(&stage).await;
    client.send("a").await;
    backend.receive().await;
    stage.publish(&[backend.address()], State::Terminating { serving: true });
    tokio::time::sleep(SILENCE).await;
    client.send("b").await;
    assert_eq!(backend.receive_text().await, "b");
    stage.settles(FLOWS, 0.0).await;
}

#[tokio::test]
async fn a_flow_stays_with_a_backend_that_is_not_ready_only_while_it_answers() {
    let (one, two) = (End::new().await, End::new().await);
    let mut stage = Stage::with(setup(), &[one.address()]).await;
    let (answered, other) = (End::client(&stage).await, End::client(&stage).await);
    answered.send("a").await;
    let (_, flow) = one.receive().await;
    one.0.send_to(b"answer", flow).await.unwrap();
    assert_eq!(answered.receive_text().await, "answer");
    other.send("b").await;
    one.receive().await;
    stage.publish_states(&[(one.address(), State::NotReady), (two.address(), State::Ready)]);
    // The pool is looked at once per tick.
    tokio::time::sleep(SILENCE).await;
    answered.send("c").await;
    assert_eq!(one.receive().await, (b"c".to_vec(), flow));
    other.send("d").await;
    assert_eq!(two.receive().await.0, b"d");
    stage.settles(FLOWS, 2.0).await;
}

#[tokio::test]
async fn a_flow_that_is_silent_is_forgotten() {
    let backend = End::new().await;
    let stage =
        Stage::with(with_limits(|it| it.flow_idle = Duration::from_millis(500)), &[backend.address()]).await;
    let client = End::client(&stage).await;
    client.send("a").await;
    let (_, flow) = backend.receive().await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        backend.0.send_to(b"x", flow).await.unwrap();
        assert_eq!(client.receive_text().await, "x", "it is in use");
    }
    stage.settles(FLOWS, 0.0).await;
    client.send("b").await;
    assert_ne!(backend.receive().await.1, flow, "it is another flow");
}

#[tokio::test]
async fn flows_are_limited_in_all_and_for_each_client() {
    for (limit, setup) in
        [("flows", with_limits(|it| it.flows = 2)), ("client", with_limits(|it| it.flows_per_client = 2))]
    {
        let backend = End::new().await;
        let stage = Stage::with(setup, &[backend.address()]).await;
        let [one, two, three] =
            [End::client(&stage).await, End::client(&stage).await, End::client(&stage).await];
        one.send("1").await;
        two.send("2").await;
        three.send("3").await;
        three.send("3").await;
        stage.settles(&refused(limit), 2.0).await;
        one.send("4").await;
        let came = [backend.receive_text().await, backend.receive_text().await, backend.receive_text().await];
        assert_eq!(came, ["1", "2", "4"]);
        stage.settles(FLOWS, 2.0).await;
    }
}

#[tokio::test]
async fn a_backend_that_refuses_is_passed_over_with_the_next_datagram() {
    let backend = End::new().await;
    let (there, nobody) = (backend.address(), nobody().await);
    let mut stage = Stage::with(setup(), &[there]).await;
    backend.answer_all("here");
    for backends in [[nobody, there], [there, nobody]] {
        stage.publish(&backends, State::Ready);
        let client = End::client(&stage).await;
        let answered = async {
            // The first one is lost where nobody receives.
            loop {
                client.send("a").await;
                if !client.hears_nothing().await {
                    return;
                }
            }
        };
        timeout(PATIENCE, answered).await.expect("no backend answers");
    }
    assert_eq!(stage.series(&retried()), 1.0, "one of the two orders begins with nobody");
}

#[tokio::test]
async fn a_flow_that_was_answered_stays_when_its_backend_refuses_for_a_while() {
    let (backend, other) = (End::new().await, End::new().await);
    let at = backend.address();
    let mut stage = Stage::with(setup(), &[at]).await;
    let client = End::client(&stage).await;
    client.send("a").await;
    let (_, flow) = backend.receive().await;
    backend.0.send_to(b"answer", flow).await.unwrap();
    assert_eq!(client.receive_text().await, "answer");
    stage.publish(&[at, other.address()], State::Ready);
    drop(backend);
    for _ in 0..3 {
        client.send("b").await;
    }
    let labels = "namespace=\"shop\",pool=\"web\",direction=\"received\"";
    stage.settles(&format!("guideway_datagrams_total{{{labels}}}"), 4.0).await;
    let restarted = End(UdpSocket::bind(at).await.unwrap());
    client.send("c").await;
    assert_eq!(restarted.receive().await, (b"c".to_vec(), flow));
    assert!(other.hears_nothing().await);
    assert_eq!(stage.series(&retried()), 0.0);
}

#[tokio::test]
async fn datagrams_that_find_no_backend_are_counted() {
    let rescued = |reason: &str| {
        format!("guideway_rescued_total{{namespace=\"shop\",pool=\"web\",reason=\"{reason}\"}}")
    };
    let mut stage = Stage::with(setup(), &[]).await;
    let client = End::client(&stage).await;
    client.send("a").await;
    stage.settles(&rescued("no_backend"), 1.0).await;
    stage.publish(&[nobody().await], State::Ready);
    client.send("b").await;
    stage.settles(FLOWS, 1.0).await;
    client.send("c").await;
    stage.settles(&rescued("connect_failed"), 1.0).await;
    stage.settles(FLOWS, 0.0).await;
}

#[tokio::test]
async fn flows_end_with_their_port() {
    let backend = End::new().await;
    let mut stage = Stage::with(Setup { workers: 2, ..setup() }, &[backend.address()]).await;
    for _ in 0..3 {
        let client = End::client(&stage).await;
        client.send("a").await;
        backend.receive().await;
        stage.publish_nothing();
        stage.wait_until(|ports| ports.is_empty()).await;
        // The port is free at once.
        drop(UdpSocket::bind((Ipv4Addr::LOCALHOST, stage.port)).await.unwrap());
        stage.publish(&[backend.address()], State::Ready);
        stage.wait_until(|ports| !ports.is_empty()).await;
        stage.becomes_ready().await;
    }
}

#[tokio::test]
async fn a_drain_serves_flows_until_they_are_silent() {
    let backend = End::new().await;
    let setup = with_limits(|it| it.drain_idle = Duration::from_millis(400));
    let stage = Stage::with(setup, &[backend.address()]).await;
    let client = End::client(&stage).await;
    client.send("a").await;
    let (_, flow) = backend.receive().await;
    let drain = tokio::spawn(stage.proxy.drain(PATIENCE));
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        client.send("b").await;
        assert_eq!(backend.receive().await, (b"b".to_vec(), flow));
    }
    assert_eq!(drain.await.unwrap(), 0);
}

#[tokio::test]
async fn what_is_left_of_flows_at_the_deadline_is_counted() {
    let backend = End::new().await;
    let stage = Stage::with(setup(), &[backend.address()]).await;
    let client = End::client(&stage).await;
    client.send("a").await;
    backend.receive().await;
    assert_eq!(stage.proxy.drain(Duration::from_millis(300)).await, 1);
}
