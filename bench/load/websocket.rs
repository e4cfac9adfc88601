//! Owns the client side of the WebSocket race: every connection has one message under way, which must come back as
//! it was sent.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Args;
use serde::Serialize;
use tokio::io::AsyncReadExt;
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::echo::find_end;
use crate::frame;
use crate::http1::{Reason, broken, send};
use crate::tally::{Report, Tally};
use crate::wire::{Target, TargetArgs, Wire};

/// Opcode of a binary message.
const BINARY: u8 = 2;

/// A message that takes longer to come back has failed.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Args)]
pub(crate) struct Plan {
    #[command(flatten)]
    target: TargetArgs,
    #[arg(long)]
    connections: usize,
    #[arg(long)]
    seconds: f64,
    /// Bytes of a message.
    #[arg(long)]
    size: usize,
}

#[derive(Serialize)]
struct Outcome {
    #[serde(flatten)]
    report: Report,
    seconds: f64,
}

struct Run {
    target: Target,
    payload: Vec<u8>,
    until: Instant,
    tally: RefCell<Tally>,
}

impl Plan {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        ensure!(self.size <= frame::MAX_PAYLOAD, "--size is at most {}", frame::MAX_PAYLOAD);
        let start = Instant::now();
        let run = Rc::new(Run {
            target: Target::new(&self.target)?,
            payload: b"guideway ".iter().copied().cycle().take(self.size).collect(),
            until: start + Duration::from_secs_f64(self.seconds),
            tally: RefCell::new(Tally::new()),
        });
        let talks: Vec<_> = (0..self.connections).map(|index| spawn_local(run.clone().talk(index))).collect();
        for talk in talks {
            talk.await?;
        }
        let outcome = Outcome { report: run.tally.borrow().report(), seconds: start.elapsed().as_secs_f64() };
        println!("{}", serde_json::to_string(&outcome)?);
        Ok(())
    }
}

impl Run {
    async fn talk(self: Rc<Self>, index: usize) {
        if let Err(reason) = self.messages(index).await {
            self.tally.borrow_mut().failed(reason);
        }
    }

    async fn messages(&self, index: usize) -> Result<(), Reason> {
        let mut wire = self.open(index).await?;
        let mut message = Vec::new();
        frame::write(BINARY, &self.payload, true, &mut message);
        let mut buffer = Vec::with_capacity(message.len());
        while Instant::now() < self.until {
            let sent = Instant::now();
            send(&mut *wire, &message).await?;
            let echo = timeout(PATIENCE, next_frame(&mut *wire, &mut buffer));
            let payload = echo.await.map_err(|_| "no echo in time")??.payload;
            if payload != self.payload {
                return Err("the echo is not what was sent".to_owned());
            }
            self.tally.borrow_mut().answered(sent.elapsed());
        }
        Ok(())
    }

    async fn open(&self, index: usize) -> Result<Box<dyn Wire>, Reason> {
        let connecting = self.target.connect(index).await;
        let mut wire = connecting.map_err(|error| broken("the connection", &error))?;
        let opening = frame::opening(index);
        send(&mut *wire, opening.as_bytes()).await?;
        let mut head = Vec::new();
        while find_end(&head).is_none() {
            read(&mut *wire, &mut head).await?;
        }
        let head = String::from_utf8_lossy(&head);
        if frame::is_open(&head) {
            return Ok(wire);
        }
        Err(format!("no WebSocket: {}", head.lines().next().unwrap_or_default()))
    }
}

async fn next_frame(wire: &mut dyn Wire, buffer: &mut Vec<u8>) -> Result<frame::Frame, Reason> {
    loop {
        if let Some(frame) = frame::read(buffer) {
            buffer.drain(..frame.end);
            return Ok(frame);
        }
        read(wire, buffer).await?;
    }
}

async fn read(wire: &mut dyn Wire, into: &mut Vec<u8>) -> Result<(), Reason> {
    match wire.read_buf(into).await {
        Ok(0) => Err("closed before the echo".to_owned()),
        Ok(_) => Ok(()),
        Err(error) => Err(broken("the echo", &error)),
    }
}
