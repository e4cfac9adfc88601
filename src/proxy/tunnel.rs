//! Owns a connection after its switch to another protocol: bytes pass both ways as they come, each direction ends
//! by itself, and nothing is held but what the other side does not take at once.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use super::connection::Connection;
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
        socket::probe(&reached.upstream.stream);
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
    fn poll_up(
        &mut self,
        cx: &mut Context<'_>,
        reached: &mut Reached,
        lane: &mut Lane,
    ) -> Poll<Result<(), Broken>> {
        let Self { worker, socket, inbox, upload, .. } = self;
        let backend = &mut reached.upstream.stream;
        let area = &mut worker.scratch.borrow_mut().area;
        for _ in 0..READS_PER_TURN {
            if !inbox.is_empty() {
                upload.out.space().extend_from_slice(inbox.bytes());
                inbox.advance(inbox.bytes().len());
            }
            ready!(upload.out.poll_flush(cx, backend)).map_err(|_| Broken)?;
            match lane {
                Lane::Open => {}
                Lane::Ending => {
                    ready!(Pin::new(backend).poll_shutdown(cx)).map_err(|_| Broken)?;
                    *lane = Lane::Ended;
                    return Poll::Ready(Ok(()));
                }
                Lane::Ended => return Poll::Ready(Ok(())),
            }
            match ready!(socket.poll_read(cx, &mut area[READ])).map_err(|_| Broken)? {
                0 => *lane = Lane::Ending,
                read => {
                    let bytes = &area[READ.start..READ.start + read];
                    upload.out.send(cx, backend, bytes).map_err(|_| Broken)?;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// What the backend sends.
    fn poll_down(
        &mut self,
        cx: &mut Context<'_>,
        reached: &mut Reached,
        lane: &mut Lane,
    ) -> Poll<Result<(), Broken>> {
        let Self { worker, socket, download, .. } = self;
        let area = &mut worker.scratch.borrow_mut().area;
        for _ in 0..READS_PER_TURN {
            ready!(download.out.poll_flush(cx, socket)).map_err(|_| Broken)?;
            match lane {
                Lane::Open => {}
                Lane::Ending => {
                    ready!(Pin::new(&mut *socket).poll_shutdown(cx)).map_err(|_| Broken)?;
                    *lane = Lane::Ended;
                    return Poll::Ready(Ok(()));
                }
                Lane::Ended => return Poll::Ready(Ok(())),
            }
            match ready!(reached.upstream.poll_read(cx, &mut area[READ])).map_err(|_| Broken)? {
                0 => *lane = Lane::Ending,
                read => {
                    let bytes = &area[READ.start..READ.start + read];
                    download.out.send(cx, socket, bytes).map_err(|_| Broken)?;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
