//! Owns connections that have done their work and wait, as most connections of a busy balancer do: what they cost
//! is memory, which the harness reads while they wait.

use std::io::{Read, Write};
use std::time::Duration;

use clap::Args;
use futures::FutureExt;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::http1::{self, Client, Reason, broken};
use crate::wire::{Target, TargetArgs, Wire, open_each};

/// A connection that is not opened and answered by then has failed.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Args)]
pub(crate) struct Plan {
    #[command(flatten)]
    target: TargetArgs,
    #[arg(long, default_value = "/20b")]
    path: String,
    #[arg(long)]
    connections: usize,
}

impl Plan {
    /// Says when all connections wait, and at the end how many of them still do.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let target = Target::new(&self.target)?;
        let opened = open_each(self.connections, |index| self.open_soon(&target, index)).await;
        let failure = opened.iter().find_map(|it| it.as_ref().err());
        let report = json!({ "open": opened.iter().flatten().count(), "first_failure": failure });
        let mut output = std::io::stdout();
        writeln!(output, "{report}")?;
        output.flush()?;
        spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
        let still_open =
            opened.into_iter().flatten().filter_map(|mut it| is_open(&mut *it).then_some(())).count();
        println!("{}", json!({ "still_open": still_open }));
        Ok(())
    }

    async fn open_soon(&self, target: &Target, index: usize) -> Result<Box<dyn Wire>, Reason> {
        let opened = timeout(PATIENCE, self.open(target, index)).await;
        opened.unwrap_or_else(|_| Err("no answer in time".to_owned()))
    }

    async fn open(&self, target: &Target, index: usize) -> Result<Box<dyn Wire>, Reason> {
        let wire = target.connect(index).await.map_err(|error| broken("the connection", &error))?;
        let mut client = Client::new(wire);
        let keep_alive = client.exchange(&http1::request(&self.path, index)).await?;
        if keep_alive { Ok(client.into_wire()) } else { Err("the server closes".to_owned()) }
    }
}

/// Nothing more comes from a server that waits, so a read that ends at once has met the end of the connection.
fn is_open(wire: &mut dyn Wire) -> bool {
    wire.read(&mut [0]).now_or_never().is_none()
}
