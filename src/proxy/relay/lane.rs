//! Owns one direction of an exchange: one part after the other, taken when the receiver has room for it. So no more
//! than one part waits here, and behind it the sender waits.

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use super::{Broken, Part, Party};
use crate::proxy::client::Client;
use crate::proxy::exchange::yield_turn;
use crate::proxy::limits::{MAX_REPLAY_BYTES, READS_PER_TURN};

/// One direction.
#[derive(Debug)]
pub(in crate::proxy) struct Lane {
    /// What comes next, before more is asked for. More than one only where a message is sent again.
    next: VecDeque<Part>,
    /// What was sent, as long as it may have to be sent again.
    sent: Option<Sent>,
    state: State,
    /// Ended already where the message has no body.
    beginning: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// The whole message was put.
    Ended,
    /// The receiver takes no more.
    Deaf,
}

#[derive(Debug, Default)]
struct Sent {
    parts: Vec<Part>,
    bytes: usize,
}

/// Which end of a lane broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Halt {
    Sender(Broken),
    Receiver,
}

impl Lane {
    /// A lane whose message may have to be sent to another receiver; `ended` if it has no body.
    pub(super) fn to_repeat(ended: bool) -> Self {
        Self { sent: Some(Sent::default()), ..Self::once(ended) }
    }

    /// A lane whose message is sent once.
    pub(super) fn once(ended: bool) -> Self {
        let beginning = if ended { State::Ended } else { State::Open };
        Self { next: VecDeque::new(), sent: None, state: beginning, beginning }
    }

    /// Whether something waits for the receiver.
    pub(super) fn is_blocked(&self) -> bool {
        !self.next.is_empty()
    }

    /// The message will not have to be sent again.
    pub(super) fn keep_nothing(&mut self) {
        self.sent = None;
    }

    /// Makes the message begin again, if that is possible.
    pub(super) fn rewind(&mut self) -> bool {
        let Some(sent) = &mut self.sent else { return false };
        for part in std::mem::take(sent).parts.into_iter().rev() {
            self.next.push_front(part);
        }
        self.state = self.beginning;
        true
    }

    /// Carries what can be carried now; ready when everything has arrived or either end broke.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl Party,
        to: &mut impl Party,
        watch: &Client,
    ) -> Poll<Result<(), Halt>> {
        for _ in 0..READS_PER_TURN {
            match self.state {
                State::Open => {}
                State::Ended => return to.poll_flush(cx).map_err(|_| self.deaf()),
                State::Deaf => return Poll::Ready(Err(Halt::Receiver)),
            }
            if self.next.is_empty() {
                let Poll::Ready(part) = from.poll_part(cx) else {
                    // While nothing comes, what was put goes out.
                    return match to.poll_flush(cx) {
                        Poll::Ready(Err(_)) => Poll::Ready(Err(self.deaf())),
                        Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
                    };
                };
                self.next.push_back(part.map_err(Halt::Sender)?);
            }
            ready!(self.poll_put(cx, to))?;
            watch.progressed();
        }
        yield_turn(cx)
    }

    /// Puts the next part, or as much of it as there is room for.
    fn poll_put(&mut self, cx: &mut Context<'_>, to: &mut impl Party) -> Poll<Result<(), Halt>> {
        let Some(next) = self.next.front_mut() else { return Poll::Ready(Ok(())) };
        let part = match next {
            Part::Data { bytes, .. } if !bytes.is_empty() => {
                let room = match ready!(to.poll_room(cx, bytes.len())) {
                    Ok(room) => room,
                    Err(_) => return Poll::Ready(Err(self.deaf())),
                };
                if room < bytes.len() {
                    Part::Data { bytes: bytes.split_to(room), last: false }
                } else {
                    self.next.pop_front().expect("it was looked at a moment ago")
                }
            }
            _ => self.next.pop_front().expect("it was looked at a moment ago"),
        };
        if part.is_last() {
            self.state = State::Ended;
        }
        self.remember(&part);
        Poll::Ready(to.put(part).map_err(|_| self.deaf()))
    }

    fn remember(&mut self, part: &Part) {
        let Some(sent) = &mut self.sent else { return };
        if let Part::Data { bytes, .. } = part {
            sent.bytes += bytes.len();
        }
        if sent.bytes > MAX_REPLAY_BYTES {
            self.sent = None;
        } else {
            sent.parts.push(part.clone());
        }
    }

    fn deaf(&mut self) -> Halt {
        self.state = State::Deaf;
        Halt::Receiver
    }
}
