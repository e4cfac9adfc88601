//! Owns clients that keep a server waiting, each in one of the four ways: with the handshake of TLS, with the head of
//! a request, with its body, or with taking the answer. The harness looks at the server to see when they are gone.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, spawn_local};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use crate::wire::{Target, TargetArgs, open_each};

/// How often a client sends or takes a few bytes, so that it looks alive.
const TRICKLE: Duration = Duration::from_secs(1);

/// Room for an answer in a client's kernel when the client does not want it. The kernel doubles it.
const SMALL_WINDOW: u32 = 4096;

/// A connection that is not accepted by then is refused.
const PATIENCE: Duration = Duration::from_secs(5);

/// The first bytes of a TLS record that holds a ClientHello of 512 bytes, of which the rest never comes.
const HELLO: [u8; 11] = [22, 3, 1, 2, 4, 1, 0, 2, 0, 3, 3];

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    Handshake,
    Headers,
    Body,
    Read,
}

#[derive(Args)]
pub(crate) struct Plan {
    #[command(flatten)]
    target: TargetArgs,
    #[arg(long)]
    way: Way,
    #[arg(long)]
    connections: usize,
    /// Ends the attack; clients that nobody closed are given up then.
    #[arg(long)]
    seconds: f64,
    /// What slow readers ask for; it must be longer than what kernels hold for a connection.
    #[arg(long, default_value = "/1m")]
    path: String,
}

impl Plan {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let end = Instant::now() + Duration::from_secs_f64(self.seconds);
        let target = Target::new(&self.target)?;
        let window = (self.way == Way::Read).then_some(SMALL_WINDOW);
        let opened =
            open_each(self.connections, |index| timeout(PATIENCE, target.connect_tcp(index, window))).await;
        let streams: Vec<TcpStream> = opened.into_iter().flatten().flatten().collect();
        let open = streams.len();
        println!("{}", json!({ "open": open }));
        let (first, trickle) = self.words();
        let mut clients = JoinSet::new();
        for stream in streams {
            let (first, trickle) = (first.clone(), trickle.clone());
            let reads = self.way == Way::Read;
            clients.spawn_local(async move { stall(stream, &first, &trickle, reads).await });
        }
        let mut closed = 0;
        let mut timer = spawn_local(sleep_until(end));
        loop {
            tokio::select! {
                gone = clients.join_next() => match gone {
                    Some(_) => closed += 1,
                    None => break,
                },
                _ = &mut timer => break,
            }
        }
        println!("{}", json!({ "closed": closed, "left": open - closed }));
        Ok(())
    }

    /// What a client sends at first, and what it sends from time to time.
    fn words(&self) -> (Rc<[u8]>, Rc<[u8]>) {
        let head = |method: &str, path: &str| format!("{method} {path} HTTP/1.1\r\nHost: bench.example\r\n");
        match self.way {
            Way::Handshake => (Rc::from(HELLO), Rc::from([0])),
            Way::Headers => (Rc::from(head("GET", "/1k").as_bytes()), Rc::from(*b"x-a: b\r\n")),
            Way::Body => {
                let whole = head("POST", "/sink") + "Content-Length: 1000000\r\n\r\n";
                (Rc::from(whole.as_bytes()), Rc::from(*b"b"))
            }
            Way::Read => (Rc::from((head("GET", &self.path) + "\r\n").as_bytes()), Rc::from([])),
        }
    }
}

/// Sends a little and again a little until the server closes. A slow reader takes a byte at a time, any other client
/// takes whatever comes, such as a refusal, so that it sees the end behind it.
async fn stall(mut stream: TcpStream, first: &[u8], trickle: &[u8], reads: bool) -> io::Result<()> {
    stream.write_all(first).await?;
    let mut beat = interval(TRICKLE);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut answer = [0; 512];
    loop {
        tokio::select! {
            _ = beat.tick() => {
                stream.write_all(trickle).await?;
                if reads && stream.read(&mut answer[..1]).await? == 0 {
                    return Ok(());
                }
            }
            taken = stream.read(&mut answer), if !reads => if taken? == 0 {
                return Ok(());
            }
        }
    }
}
