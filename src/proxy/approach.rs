//! Owns a client's wait for a way to a backend: it may leave meanwhile, its time may be over, and the rest of its
//! request may come, from whose end that time counts.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll};

use super::connection::Connection;
use super::flow::Foresight;
use super::rescue::ProxyError;
use super::scratch::READ;
use super::service::{self, Stop};

impl Connection {
    /// Waits for `step`, a way to a backend, but not for longer than the client and its time.
    pub(super) async fn approach<T>(&mut self, step: impl Future<Output = T>) -> Result<T, Stop> {
        let mut step = pin!(step);
        let mut foresight = None;
        poll_fn(|cx| match step.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Ok(done)),
            Poll::Pending => self.poll_given_up(cx, &mut foresight).map(Err),
        })
        .await
    }

    fn poll_given_up(&mut self, cx: &mut Context<'_>, foresight: &mut Option<Foresight>) -> Poll<Stop> {
        if let Err(stop) = self.read_ahead(cx, foresight) {
            return Poll::Ready(stop);
        }
        if let Poll::Ready(stop) = self.poll_gone(cx) {
            return Poll::Ready(stop);
        }
        let late = service::late_on_the_way(self.client.expiry());
        late.map_or(Poll::Pending, |error| Poll::Ready(Stop::Rescue(error)))
    }

    /// Reads what is there of the body, as much as waits for a slow backend too, in case that its end is among it.
    fn read_ahead(&mut self, cx: &mut Context<'_>, foresight: &mut Option<Foresight>) -> Result<(), Stop> {
        let Self { worker, client, socket, inbox, upload, awaits_continue, .. } = self;
        let area = &mut worker.scratch.borrow_mut().area;
        while client.awaits_end() {
            let foresight = foresight.get_or_insert_with(|| upload.foresight());
            let room = READ.len().saturating_sub(inbox.bytes().len());
            if foresight.sees_end(inbox.bytes(), area) {
                client.end_upload();
            } else if room == 0 || *awaits_continue {
                return Ok(());
            } else {
                let space = &mut area[READ][..room];
                match socket.poll_read(cx, space) {
                    Poll::Ready(Ok(read @ 1..)) => inbox.keep(&space[..read]),
                    Poll::Ready(Ok(0)) => return Err(Stop::Rescue(ProxyError::BrokenOff)),
                    Poll::Ready(Err(_)) => return Err(Stop::Gone),
                    Poll::Pending => return Ok(()),
                }
            }
        }
        Ok(())
    }
}
