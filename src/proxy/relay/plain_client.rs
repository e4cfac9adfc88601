//! Owns the client's side of an exchange over HTTP/1 with a backend that speaks HTTP/2.

use std::rc::Rc;
use std::task::{Context, Poll, ready};

use super::{Broken, ClientSide, Part, Party};
use crate::proxy::client::Client;
use crate::proxy::connection::{Connection, Request};
use crate::proxy::headers::{self, Hop};
use crate::proxy::http1::{Encoder, Framing, ResponseHead};

/// A client that speaks HTTP/1.
pub(in crate::proxy) struct PlainClient<'a> {
    connection: &'a mut Connection,
    request: &'a Request,
    encoder: Encoder,
    has_body: bool,
    /// Whether its connection stays open behind the answer.
    keeps: bool,
}

impl<'a> PlainClient<'a> {
    pub(in crate::proxy) fn new(connection: &'a mut Connection, request: &'a Request) -> Self {
        Self { connection, request, encoder: Encoder::Plain, has_body: false, keeps: false }
    }

    /// Whether its connection stays open.
    pub(in crate::proxy) fn keeps(&self) -> bool {
        self.keeps
    }
}

impl Party for PlainClient<'_> {
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Result<Part, Broken>> {
        loop {
            let upload = &self.connection.upload;
            if upload.is_received() {
                return Poll::Ready(Ok(Part::End(headers::of_lines(upload.trailers()))));
            }
            let bytes = ready!(self.connection.poll_body(cx))?;
            if !bytes.is_empty() {
                let upload = &self.connection.upload;
                let last = upload.is_received() && upload.trailers().is_empty();
                return Poll::Ready(Ok(Part::Data { bytes, last }));
            }
        }
    }

    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, Broken>> {
        let Connection { socket, download, .. } = &mut *self.connection;
        download.out.poll_room(cx, socket, wanted).map_err(|_| Broken::Gone)
    }

    fn put(&mut self, part: Part) -> Result<(), Broken> {
        let (bytes, behind) = part.into_plain();
        if self.has_body {
            let behind = behind.map(|lines| if self.request.takes_trailers { lines } else { Vec::new() });
            let area = &mut self.connection.worker.scratch.borrow_mut().area;
            self.connection.download.out.put_framed(area, self.encoder, &bytes, behind.as_deref());
        }
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let Connection { socket, download, .. } = &mut *self.connection;
        download.out.poll_flush(cx, socket).map_err(|_| Broken::Gone)
    }
}

impl ClientSide for PlainClient<'_> {
    fn watch(&self) -> &Rc<Client> {
        &self.connection.client
    }

    fn put_head(&mut self, head: &ResponseHead<'_>, _: bool) -> Result<(), Broken> {
        let request = self.request;
        self.encoder = headers::encoder(head.framing, request.minor);
        self.has_body = head.framing != Framing::Length(0);
        let has_end = self.encoder == Encoder::Chunked || matches!(head.framing, Framing::Length(_));
        self.keeps = has_end && self.connection.may_keep(request);
        let date = self.connection.worker.date();
        let hop = Hop {
            minor: request.minor,
            to_head: request.to_head,
            keeps: self.keeps,
            date: date.as_bytes(),
            switches_to: None,
        };
        headers::to_client(self.connection.download.out.space(), head, &hop);
        self.connection.awaits_continue = false;
        Ok(())
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.connection.poll_gone(cx).map(|_| ())
    }

    fn read_ahead(&mut self, _: &mut Context<'_>) {
        // It was, before the first try.
    }
}
