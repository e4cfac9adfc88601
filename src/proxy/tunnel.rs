//! Owns connections whose bytes are nothing to us: they pass both ways as they come, each direction ends by itself,
//! and nothing is held but what the other side does not take at once.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use super::client::{Client, Expiry};
use super::connection::Connection;
use super::exchange::yield_turn;
use super::flow::Outbox;
use super::limits::{MIN_PIPED, PIPES_PER_TURN, READS_PER_TURN};
use super::pipes::{Pipe, Pipes};
use super::scratch::READ;
use super::service::Reached;
use super::socket;

/// Whether a direction may still carry bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// Its sender closed its side; the receiver is to be told when it has taken everything.
    Ending,
    Ended,
    /// Its receiver takes no more. What that has sent before may still be there to read.
    Deaf,
}

/// One direction.
struct Lane {
    state: State,
    /// Both sockets are plain, so that its bytes may pass within the kernel.
    may_pipe: bool,
    /// So many came at once that they do.
    bulk: bool,
    /// What they pass through, while there is something in it.
    pipe: Option<Pipe>,
}

impl Lane {
    fn new(may_pipe: bool) -> Self {
        Self { state: State::Open, may_pipe, bulk: false, pipe: None }
    }

    /// Whether its next bytes come out of a pipe.
    fn is_piping(&self) -> bool {
        self.bulk || self.pipe.is_some()
    }

    fn is_over(&self) -> bool {
        matches!(self.state, State::Ended | State::Deaf)
    }
}

/// Both directions.
struct Lanes {
    up: Lane,
    down: Lane,
}

/// The sender of a direction broke off.
struct Broken;

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Both sides said that they were done.
    InOrder,
    /// We ended it.
    Late(Expiry),
    /// The client broke off, or took no more.
    ByClient,
    /// The backend did.
    ByBackend,
}

/// The connection to the backend. Unless both sides ended in order, its end is a reset and so is that of the client's,
/// also where the task that carries the bytes is cut off.
struct FarSide {
    reached: Reached,
    client: Rc<Client>,
    ended: Option<Ended>,
}

impl Drop for FarSide {
    fn drop(&mut self) {
        if self.ended != Some(Ended::InOrder) {
            self.client.reset_on_close();
            socket::reset_on_close(self.reached.upstream.stream.tcp());
        }
    }
}

impl Connection {
    /// Carries bytes between the client and the backend until both sides have ended, one is gone, or nothing moved
    /// for too long. If they did not both end in order, neither shall take it for that.
    pub(super) async fn tunnel(&mut self, reached: Reached) -> Ended {
        socket::probe(self.socket.tcp());
        socket::probe(reached.upstream.stream.tcp());
        let may_pipe = self.socket.is_plain() && !reached.upstream.stream.is_tls();
        let mut lanes = Lanes { up: Lane::new(may_pipe), down: Lane::new(may_pipe) };
        let mut far = FarSide { reached, client: self.client.clone(), ended: None };
        let ended = poll_fn(|cx| self.poll_tunnel(cx, &mut far.reached, &mut lanes)).await;
        far.ended = Some(ended);
        for pipe in [lanes.up.pipe.take(), lanes.down.pipe.take()].into_iter().flatten() {
            self.worker.pipes.give_back(pipe);
        }
        ended
    }

    fn poll_tunnel(&mut self, cx: &mut Context<'_>, reached: &mut Reached, lanes: &mut Lanes) -> Poll<Ended> {
        let up = self.poll_up(cx, reached, &mut lanes.up);
        let down = self.poll_down(cx, reached, &mut lanes.down);
        match (up, down, lanes.up.state, lanes.down.state) {
            (Poll::Ready(Err(Broken)), ..) => Poll::Ready(Ended::ByClient),
            (_, Poll::Ready(Err(Broken)), ..) => Poll::Ready(Ended::ByBackend),
            (.., State::Ended, State::Ended) => Poll::Ready(Ended::InOrder),
            (.., State::Deaf, State::Ended | State::Deaf) => Poll::Ready(Ended::ByBackend),
            (.., State::Ended, State::Deaf) => Poll::Ready(Ended::ByClient),
            _ => self.client.expiry().map_or(Poll::Pending, |expiry| Poll::Ready(Ended::Late(expiry))),
        }
    }

    /// What the client sends, beginning with what it sent before the switch.
    fn poll_up(&mut self, cx: &mut Context<'_>, reached: &mut Reached, lane: &mut Lane) -> Poll<Carried> {
        let Self { worker, client, socket, inbox, upload, .. } = self;
        if !inbox.is_empty() {
            upload.out.space().extend_from_slice(inbox.bytes());
            inbox.advance(inbox.bytes().len());
        }
        if lane.is_piping() && upload.out.is_empty() {
            let (sender, receiver) = (socket.tcp(), reached.upstream.stream.tcp());
            let count = |step: Step| {
                if let Step::Filled(bytes) = step {
                    client.received(bytes)
                }
            };
            ready!(poll_pipe(cx, &worker.pipes, lane, sender, receiver, count))?;
        }
        let area = &mut worker.scratch.borrow_mut().area[READ];
        let mut read = |cx: &mut Context<'_>, area: &mut [u8]| socket.poll_read(cx, area);
        let backend = &mut reached.upstream.stream;
        poll_carry(cx, area, &worker.pipes, lane, &mut upload.out, &mut read, backend)
    }

    /// What the backend sends.
    fn poll_down(&mut self, cx: &mut Context<'_>, reached: &mut Reached, lane: &mut Lane) -> Poll<Carried> {
        let Self { worker, client, socket, download, .. } = self;
        if lane.is_piping() && download.out.is_empty() {
            let (sender, receiver) = (reached.upstream.stream.tcp(), socket.tcp());
            let count = |step: Step| {
                if let Step::Emptied(bytes) = step {
                    client.sent(bytes)
                }
            };
            ready!(poll_pipe(cx, &worker.pipes, lane, sender, receiver, count))?;
        }
        let area = &mut worker.scratch.borrow_mut().area[READ];
        let mut read = |cx: &mut Context<'_>, area: &mut [u8]| reached.upstream.poll_read(cx, area);
        poll_carry(cx, area, &worker.pipes, lane, &mut download.out, &mut read, socket)
    }
}

type Carried = Result<(), Broken>;
type Read<'a> = &'a mut dyn FnMut(&mut Context<'_>, &mut [u8]) -> Poll<io::Result<usize>>;

/// What happened to a pipe.
enum Step {
    /// So many bytes came.
    Filled(usize),
    /// So many went.
    Emptied(usize),
}

/// Passes one direction's bytes within the kernel; ready when that is not worth it any more, or the direction ends.
fn poll_pipe(
    cx: &mut Context<'_>,
    pipes: &Pipes,
    lane: &mut Lane,
    sender: &TcpStream,
    receiver: &TcpStream,
    count: impl Fn(Step),
) -> Poll<Carried> {
    for _ in 0..PIPES_PER_TURN {
        let Some(mut pipe) = lane.pipe.take().or_else(|| pipes.take()) else {
            lane.bulk = false;
            return Poll::Ready(Ok(()));
        };
        let passed = poll_through(cx, &mut pipe, lane, sender, receiver, &count);
        if pipe.is_empty() || lane.is_over() {
            pipes.give_back(pipe);
        } else {
            lane.pipe = Some(pipe);
        }
        ready!(passed)?;
        if !lane.is_piping() {
            return Poll::Ready(Ok(()));
        }
    }
    yield_turn(cx)
}

/// Fills a pipe, unless there is something in it, and empties it.
fn poll_through(
    cx: &mut Context<'_>,
    pipe: &mut Pipe,
    lane: &mut Lane,
    sender: &TcpStream,
    receiver: &TcpStream,
    count: impl Fn(Step),
) -> Poll<Carried> {
    if pipe.is_empty() {
        match ready!(pipe.poll_fill(cx, sender)).map_err(|_| Broken)? {
            0 => (lane.state, lane.bulk) = (State::Ending, false),
            filled => {
                lane.bulk = filled >= MIN_PIPED;
                count(Step::Filled(filled));
            }
        }
    }
    while !pipe.is_empty() {
        match ready!(pipe.poll_empty(cx, receiver)) {
            Ok(emptied @ 1..) => count(Step::Emptied(emptied)),
            Ok(0) | Err(_) => {
                (lane.state, lane.bulk) = (State::Deaf, false);
                break;
            }
        }
    }
    Poll::Ready(Ok(()))
}

/// Carries one direction as far as it goes now; ready when it has ended.
fn poll_carry<W: AsyncWrite + Unpin>(
    cx: &mut Context<'_>,
    area: &mut [u8],
    pipes: &Pipes,
    lane: &mut Lane,
    out: &mut Outbox,
    read: Read<'_>,
    receiver: &mut W,
) -> Poll<Carried> {
    for _ in 0..READS_PER_TURN {
        if lane.is_over() {
            return Poll::Ready(Ok(()));
        }
        if ready!(out.poll_flush(cx, receiver)).is_err() {
            lane.state = State::Deaf;
        } else if lane.state == State::Ending {
            let told = ready!(Pin::new(&mut *receiver).poll_shutdown(cx));
            lane.state = if told.is_ok() { State::Ended } else { State::Deaf };
        } else if lane.bulk {
            // Everything of before is on its way, so that the order is kept.
            break;
        } else {
            match ready!(read(cx, area)).map_err(|_| Broken)? {
                0 => lane.state = State::Ending,
                read if out.send(cx, receiver, &area[..read]).is_err() => lane.state = State::Deaf,
                read => lane.bulk = lane.may_pipe && read == area.len() && pipes.has_room(),
            }
        }
    }
    yield_turn(cx)
}
