//! Owns the open loop: requests are due by a schedule and go to the connections in turn. Time counts from the moment
//! a request was due, so a server that stalls cannot hide the requests that had to wait.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Args;
use serde::Serialize;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::http1::{self, Client, Reason, broken};
use crate::metronome::Metronome;
use crate::tally::{Report, Tally};
use crate::wire::{Target, TargetArgs, open_each};

/// How often the schedule is looked at. It is the error of a latency; more often would cost the CPU that the
/// backends share.
const BEAT: Duration = Duration::from_micros(100);

/// A request whose answer takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Args)]
pub(crate) struct Plan {
    #[command(flatten)]
    target: TargetArgs,
    #[arg(long, default_value = "/1k")]
    path: String,
    /// Keep-alive connections, opened before the schedule begins.
    #[arg(long)]
    connections: usize,
    /// Requests per second over all connections.
    #[arg(long)]
    rate: f64,
    #[arg(long)]
    seconds: f64,
}

#[derive(Serialize)]
struct Outcome {
    #[serde(flatten)]
    report: Report,
    /// Connections that could be opened before the schedule began, and how long that took.
    opened: usize,
    opening_seconds: f64,
    /// From the first request that was due to the last answer.
    seconds: f64,
    /// How late requests were handed to their connections; a high value means the load was not as promised.
    lag_p99_us: u64,
}

struct Run {
    target: Target,
    path: String,
    tally: RefCell<Tally>,
}

impl Plan {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        ensure!(self.connections > 0 && self.rate > 0.0, "--connections and --rate must be above 0");
        let run = Rc::new(Run {
            target: Target::new(&self.target)?,
            path: self.path.clone(),
            tally: RefCell::new(Tally::new()),
        });
        let began = Instant::now();
        let clients = open_each(self.connections, |index| run.open(index)).await;
        let opening_seconds = began.elapsed().as_secs_f64();
        let opened = clients.iter().flatten().count();
        let (mut senders, mut workers) = (Vec::new(), Vec::new());
        for (index, client) in clients.into_iter().enumerate() {
            let (sender, due) = mpsc::unbounded_channel();
            senders.push(sender);
            workers.push(spawn_local(run.clone().work(index, client.ok(), due)));
        }
        let start = Instant::now();
        let lag = self.hand_out(start, &senders).await?;
        drop(senders);
        for worker in workers {
            worker.await?;
        }
        let seconds = start.elapsed().as_secs_f64();
        let report = run.tally.borrow().report();
        let outcome = Outcome { report, opened, opening_seconds, seconds, lag_p99_us: lag.report().p99_us };
        println!("{}", serde_json::to_string(&outcome)?);
        Ok(())
    }

    /// Gives every request to its connection when it is due; returns how late that was.
    async fn hand_out(
        &self,
        start: Instant,
        senders: &[mpsc::UnboundedSender<Instant>],
    ) -> anyhow::Result<Tally> {
        let metronome = Metronome::every(BEAT)?;
        let mut lag = Tally::new();
        let count = (self.rate * self.seconds) as usize;
        let mut next = 0;
        while next < count {
            metronome.beat().await?;
            while next < count {
                let due = start + Duration::from_secs_f64(next as f64 / self.rate);
                let late = Instant::now().checked_duration_since(due);
                let Some(late) = late else { break };
                lag.answered(late);
                // A worker ends after its sender, so it takes what it is sent.
                let _ = senders[next % senders.len()].send(due);
                next += 1;
            }
        }
        Ok(lag)
    }
}

impl Run {
    /// One connection: its requests one after the other, on a new connection where the last one ended.
    async fn work(
        self: Rc<Self>,
        index: usize,
        mut client: Option<Client>,
        mut requests: UnboundedReceiver<Instant>,
    ) {
        let mut user = index;
        while let Some(due) = requests.recv().await {
            let request = http1::request(&self.path, user);
            user += 1;
            let answered = timeout(PATIENCE, self.exchange(index, &mut client, &request)).await;
            match answered.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
                Ok(true) => self.tally.borrow_mut().answered(due.elapsed()),
                Ok(false) => {
                    client = None;
                    self.tally.borrow_mut().answered(due.elapsed());
                }
                Err(reason) => {
                    client = None;
                    self.tally.borrow_mut().failed(reason);
                }
            }
        }
    }

    async fn exchange(
        &self,
        index: usize,
        client: &mut Option<Client>,
        request: &[u8],
    ) -> Result<bool, Reason> {
        match client {
            Some(client) => client.exchange(request).await,
            None => client.insert(self.open(index).await?).exchange(request).await,
        }
    }

    async fn open(&self, index: usize) -> Result<Client, Reason> {
        match timeout(PATIENCE, self.target.connect(index)).await {
            Ok(Ok(wire)) => Ok(Client::new(wire)),
            Ok(Err(error)) => Err(broken("the connection", &error)),
            Err(_) => Err("no connection in time".to_owned()),
        }
    }
}
