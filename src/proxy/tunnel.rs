//! Owns a connection after its switch to another protocol: bytes pass both ways as they come, each direction ends
//! by itself, and nothing is held but what the other side does not take at once.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use super::connection::Connection;
use super::exchange::yield_turn;
use super::flow::Outbox;
use super::limits::READS_PER_TURN;
use super::scratch::READ;
use super::service::Reached;
use super::socket;

/// Whether a direction may still carry bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Open,
    /// Its sender closed its side; the receiver is to be told when it has taken everything.
    Ending,
    Ended,
}

/// Both directions.
struct Lanes {
    up: Lane,
    down: Lane,
}

/// One of the two sides is gone, or nobody may wait any longer.
struct Broken;

impl Connection {
    /// Carries bytes between the client and the backend until both sides have ended, one is gone, or nothing moved
    /// for too long.
    pub(super) async fn tunnel(&mut self, mut reached: Reached) {
        socket::probe(self.socket.tcp());
        socket::probe(reached.upstream.stream.tcp());
        let mut lanes = Lanes { up: Lane::Open, down: Lane::Open };
        poll_fn(|cx| self.poll_tunnel(cx, &mut reached, &mut lanes)).await;
    }

    fn poll_tunnel(&mut self, cx: &mut Context<'_>, reached: &mut Reached, lanes: &mut Lanes) -> Poll<()> {
        for lane in [self.poll_up(cx, reached, &mut lanes.up), self.poll_down(cx, reached, &mut lanes.down)] {
            if let Poll::Ready(Err(Broken)) = lane {
                return Poll::Ready(());
            }
        }
        let ended = lanes.up == Lane::Ended && lanes.down == Lane::Ended;
        if ended || self.client.expiry().is_some() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// What the client sends, beginning with what it sent before the switch.
    fn poll_up(&mut self, cx: &mut Context<'_>, reached: &mut Reached, lane: &mut Lane) -> Poll<Carried> {
        let Self { worker, socket, inbox, upload, .. } = self;
        if !inbox.is_empty() {
            upload.out.space().extend_from_slice(inbox.bytes());
            inbox.advance(inbox.bytes().len());
        }
        let area = &mut worker.scratch.borrow_mut().area[READ];
        let mut read = |cx: &mut Context<'_>, area: &mut [u8]| socket.poll_read(cx, area);
        poll_carry(cx, area, lane, &mut upload.out, &mut read, &mut reached.upstream.stream)
    }

    /// What the backend sends.
    fn poll_down(&mut self, cx: &mut Context<'_>, reached: &mut Reached, lane: &mut Lane) -> Poll<Carried> {
        let Self { worker, socket, download, .. } = self;
        let area = &mut worker.scratch.borrow_mut().area[READ];
        let mut read = |cx: &mut Context<'_>, area: &mut [u8]| reached.upstream.poll_read(cx, area);
        poll_carry(cx, area, lane, &mut download.out, &mut read, socket)
    }
}

type Carried = Result<(), Broken>;
type Read<'a> = &'a mut dyn FnMut(&mut Context<'_>, &mut [u8]) -> Poll<io::Result<usize>>;

/// Carries one direction as far as it goes now; ready when it has ended.
fn poll_carry<W: AsyncWrite + Unpin>(
    cx: &mut Context<'_>,
    area: &mut [u8],
    lane: &mut Lane,
    out: &mut Outbox,
    read: Read<'_>,
    receiver: &mut W,
) -> Poll<Carried> {
    for _ in 0..READS_PER_TURN {
        ready!(out.poll_flush(cx, receiver)).map_err(|_| Broken)?;
        match lane {
            Lane::Open => {}
            Lane::Ending => {
                ready!(Pin::new(&mut *receiver).poll_shutdown(cx)).map_err(|_| Broken)?;
                *lane = Lane::Ended;
                return Poll::Ready(Ok(()));
            }
            Lane::Ended => return Poll::Ready(Ok(())),
        }
        match ready!(read(cx, area)).map_err(|_| Broken)? {
            0 => *lane = Lane::Ending,
            read => out.send(cx, receiver, &area[..read]).map_err(|_| Broken)?,
        }
    }
    yield_turn(cx)
}
