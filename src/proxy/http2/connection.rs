//! Owns the task of one connection of HTTP/2: it carries the frames, begins a task for each stream, and ends when
//! the client is idle or too slow, sends a flood, or is asked to leave.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::Reason;
use h2::server::Builder;
use tokio::task::spawn_local;

use super::gauge::Gauge;
use super::stream;
use super::wire::Wire;
use crate::metrics::Refusal;
use crate::proxy::client::{Client, Expiry, Phase};
use crate::proxy::connection::Connection;
use crate::proxy::limits::{CONNECTION_WINDOW, MAX_HEAD_BYTES, MAX_STREAM_OUT, MAX_STREAMS, STREAM_WINDOW};
use crate::proxy::worker::Worker;

/// Serves a client that speaks HTTP/2, until its connection ends. What was read of it already is in the inbox.
pub(in crate::proxy) async fn serve(connection: Connection) {
    let Connection { worker, client, socket, inbox, .. } = connection;
    let gauge = Rc::new(Gauge::new(worker.now()));
    let scheme = socket.scheme().name();
    client.came_to(|| socket.local_address());
    client.enter(Phase::Head);
    let wire = Wire::new(worker.clone(), socket, inbox, gauge.clone());
    let mut handshake = pin!(settings().handshake(wire));
    let frames = poll_fn(|cx| match handshake.as_mut().poll(cx) {
        Poll::Ready(made) => Poll::Ready(made.ok()),
        Poll::Pending if client.expiry().is_some() => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    });
    let Some(frames) = frames.await else { return };
    client.enter(Phase::Resting);
    let mut driver = Driver { worker, client, frames, gauge, scheme };
    poll_fn(|cx| driver.poll(cx)).await;
}

fn settings() -> Builder {
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(MAX_STREAMS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .max_send_buffer_size(MAX_STREAM_OUT);
    builder
}

struct Driver {
    worker: Rc<Worker>,
    client: Rc<Client>,
    frames: h2::server::Connection<Wire, Bytes>,
    gauge: Rc<Gauge>,
    scheme: &'static str,
}

impl Driver {
    /// Carries frames until the connection has ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.gauge.refill(self.worker.now());
        if self.worker.asks_to_leave() || self.client.is_leaving() {
            self.frames.graceful_shutdown();
        }
        if self.poll_frames(cx).is_ready() {
            return Poll::Ready(());
        }
        match self.client.expiry() {
            // It does not even take the goodbye.
            Some(Expiry::Linger) => Poll::Ready(()),
            Some(Expiry::Idle) => self.poll_end(cx, Reason::NO_ERROR),
            Some(_) => self.poll_end(cx, Reason::ENHANCE_YOUR_CALM),
            None if self.gauge.is_spent() && self.client.phase() != Phase::Linger => {
                self.worker.meters.refuse(Refusal::Flood);
                self.poll_end(cx, Reason::ENHANCE_YOUR_CALM)
            }
            None => {
                self.enter_phase();
                Poll::Pending
            }
        }
    }

    /// Carries what can be carried now; ready when the connection has ended.
    fn poll_frames(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self.frames.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    self.client.enter(Phase::Carrying);
                    let (worker, client) = (self.worker.clone(), self.client.stream());
                    let gauge = self.gauge.clone();
                    spawn_local(stream::serve(worker, client, gauge, self.scheme, request, respond));
                }
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Says why, and ends the connection with all its streams.
    fn poll_end(&mut self, cx: &mut Context<'_>, reason: Reason) -> Poll<()> {
        self.client.enter(Phase::Linger);
        self.frames.abrupt_shutdown(reason);
        self.poll_frames(cx)
    }

    /// A head may take as long as with HTTP/1; it holds up all streams.
    fn enter_phase(&self) {
        match (self.gauge.is_in_head(), self.client.phase()) {
            (true, Phase::Resting | Phase::Carrying) => self.client.enter(Phase::Head),
            (false, Phase::Head) => self.client.enter(Phase::Carrying),
            _ => {}
        }
    }
}
