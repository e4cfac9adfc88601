//! `guideway-load`: the load that the benchmarks need and no existing tool offers: an open loop over thousands of
//! connections, connections that only wait, WebSocket messages, and clients that are slow on purpose.
//! Each command prints its report as one line of JSON.

mod echo;
mod frame;
mod http1;
mod idle;
mod metronome;
mod pace;
mod slow;
mod tally;
mod websocket;
mod wire;

use clap::Parser;
use tokio::task::LocalSet;

#[derive(Parser)]
#[command(about = "Load for Guideway's benchmarks", version)]
enum Command {
    /// Requests on a fixed schedule, whatever the answers do.
    Pace(pace::Plan),
    /// Connections that send one request each and then wait until standard input ends.
    Idle(idle::Plan),
    /// WebSocket messages, the next one of a connection when the last one came back.
    Websocket(websocket::Plan),
    /// A WebSocket backend that sends back what it gets. Runs until it is ended.
    Echo(echo::Plan),
    /// Clients that keep a server waiting. They stay until they are closed, and do not come back.
    Slow(slow::Plan),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let command = Command::parse();
    LocalSet::new()
        .run_until(async move {
            match command {
                Command::Pace(plan) => plan.run().await,
                Command::Idle(plan) => plan.run().await,
                Command::Websocket(plan) => plan.run().await,
                Command::Echo(plan) => plan.run().await,
                Command::Slow(plan) => plan.run().await,
            }
        })
        .await
}
