//! Owns the question whether a backend is still there, on a connection of HTTP/2 whose streams wait in silence: its
//! kernel acknowledges what we sent also when the process hangs, and then nobody else would notice.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep};

use crate::proxy::limits::{LINK_PING_AFTER, LINK_PING_EVERY, LINK_PING_WAIT};

/// Bytes of the answer to a ping (RFC 9113 section 6.7).
const PING_FRAME: u64 = 17;

/// What is heard of a backend on one connection.
#[derive(Debug, Default)]
pub(super) struct Signs {
    /// Streams under way.
    pub(super) streams: Cell<usize>,
    /// Bytes that came, of whatever kind.
    bytes: Cell<u64>,
    /// Part of an answer came since the latest ping.
    answered: Cell<bool>,
}

impl Signs {
    /// Part of an answer came.
    pub(super) fn answer(&self) {
        self.answered.set(true);
    }
}

/// Ends when nobody is there any more.
pub(super) async fn lost(signs: &Signs, mut pings: PingPong) {
    let (mut asked_at, mut heard_by_then): (Option<Instant>, u64) = (None, 0);
    loop {
        silence(signs, LINK_PING_AFTER).await;
        let asked_long_ago = asked_at.is_none_or(|at| at.elapsed() >= LINK_PING_EVERY);
        // What a slow client takes may have come long ago.
        let has_come = signs.bytes.get() > heard_by_then + PING_FRAME;
        if signs.streams.get() == 0 || !(signs.answered.replace(false) && has_come || asked_long_ago) {
            continue;
        }
        (asked_at, heard_by_then) = (Some(Instant::now()), signs.bytes.get());
        tokio::select! {
            answer = pings.ping(Ping::opaque()) => if answer.is_err() {
                // The connection ends by itself.
                return std::future::pending().await;
            },
            // Whatever comes is a sign of life: the answer may have to wait behind much else.
            () = silence(signs, LINK_PING_WAIT) => return,
        }
    }
}

/// Ends when nothing came for as long as this, or up to twice as long.
async fn silence(signs: &Signs, wait: Duration) {
    loop {
        let bytes = signs.bytes.get();
        sleep(wait).await;
        if signs.bytes.get() == bytes {
            return;
        }
    }
}

/// A transport that tells what comes.
pub(super) struct Heard<T> {
    transport: T,
    signs: Rc<Signs>,
}

impl<T> Heard<T> {
    pub(super) fn new(transport: T, signs: Rc<Signs>) -> Self {
        Self { transport, signs }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Heard<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { transport, signs } = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(transport).poll_read(cx, buffer))?;
        signs.bytes.update(|bytes| bytes + (buffer.filled().len() - before) as u64);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Heard<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.transport).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.transport).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use h2::client::ResponseFuture;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const ACK: u8 = 1;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let head = [0, 0, payload.len() as u8, kind, flags, 0, 0, 0, 0];
        [&head[..], payload].concat()
    }

    /// Answers like a server, but to no request: pings are counted, and answered as long as `is_well`.
    async fn serve(mut end: DuplexStream, is_well: bool, pinged: Rc<Cell<usize>>) {
        end.read_exact(&mut [0; 24]).await.unwrap();
        end.write_all(&frame(SETTINGS, 0, &[])).await.unwrap();
        loop {
            let mut head = [0; 9];
            end.read_exact(&mut head).await.unwrap();
            let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
            end.read_exact(&mut payload).await.unwrap();
            match (head[3], head[4]) {
                (SETTINGS, 0) => end.write_all(&frame(SETTINGS, ACK, &[])).await.unwrap(),
                (PING, 0) => {
                    pinged.set(pinged.get() + 1);
                    if is_well {
                        end.write_all(&frame(PING, ACK, &payload)).await.unwrap();
                    }
                }
                _ => {}
            }
        }
    }

    struct Asked {
        pinged: usize,
        /// How long the connection lasts, at most as long as anybody looks.
        lasted: Duration,
        _responses: Vec<ResponseFuture>,
    }

    /// Looks at a connection with this many requests under way, of which part of an answer comes every so often.
    async fn look(is_well: bool, requests: usize, answered_every: Duration, bytes: u64) -> Asked {
        let (near, far) = duplex(1 << 16);
        let (signs, pinged) = (Rc::<Signs>::default(), Rc::<Cell<usize>>::default());
        let served = serve(far, is_well, pinged.clone());
        let asked = async {
            let heard = Heard::new(near, signs.clone());
            let (mut sender, mut connection) = h2::client::handshake::<_>(heard).await.unwrap();
            let pings = connection.ping_pong().unwrap();
            let ask = |_| {
                let request = http::Request::get("http://a/").body(()).unwrap();
                sender.send_request(request, true).unwrap().0
            };
            let responses: Vec<_> = (0..requests).map(ask).collect();
            signs.streams.set(requests);
            let answers = async {
                loop {
                    sleep(answered_every).await;
                    signs.bytes.update(|before| before + bytes);
                    signs.answer();
                }
            };
            let begun = Instant::now();
            tokio::select! {
                _ = connection => {}
                () = lost(&signs, pings) => {}
                () = sleep(LONG) => {}
                () = answers => {}
            }
            Asked { pinged: pinged.get(), lasted: begun.elapsed(), _responses: responses }
        };
        let _: Option<Bytes> = None;
        tokio::select! {
            asked = asked => asked,
            () = served => unreachable!("it serves for as long as it is looked at"),
        }
    }

    const LONG: Duration = Duration::from_secs(3600);
    const NEVER: Duration = Duration::from_secs(86_400);

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_is_silent_to_a_ping_is_lost() {
        let asked = look(false, 1, NEVER, 0).await;
        let soonest = LINK_PING_AFTER + LINK_PING_WAIT;
        assert!((soonest..=soonest + LINK_PING_AFTER).contains(&asked.lasted), "{:?}", asked.lasted);
        assert_eq!(asked.pinged, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_only_thinks_is_left_in_peace() {
        let asked = look(true, 1, NEVER, 0).await;
        assert_eq!(asked.lasted, LONG);
        // Servers of gRPC end the connection of who pings more often without need.
        let often = (LONG.as_secs() / LINK_PING_EVERY.as_secs()) as usize;
        assert!((2..=often).contains(&asked.pinged), "{} pings", asked.pinged);
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_answered_in_between_is_asked_again() {
        let minute = Duration::from_secs(60);
        let asked = look(true, 1, minute, 100).await;
        assert_eq!(asked.lasted, LONG);
        assert_eq!(asked.pinged as u64, LONG.as_secs() / minute.as_secs());
        let taken_late = look(true, 1, minute, 0).await;
        assert!(
            taken_late.pinged as u64 <= LONG.as_secs() / LINK_PING_EVERY.as_secs(),
            "{}",
            taken_late.pinged
        );
        let busy = look(false, 1, LINK_PING_AFTER / 2, 100).await;
        assert_eq!((busy.lasted, busy.pinged), (LONG, 0), "it is never silent");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_asks_on_behalf_of_nobody() {
        let asked = look(false, 0, NEVER, 0).await;
        assert_eq!((asked.lasted, asked.pinged), (LONG, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_of_any_kind_are_a_sign_of_life() {
        let signs = Signs::default();
        let begun = Instant::now();
        let coming = async {
            for _ in 0..5 {
                sleep(LINK_PING_AFTER * 2 / 3).await;
                signs.bytes.set(signs.bytes.get() + 1);
            }
            std::future::pending().await
        };
        tokio::select! {
            () = silence(&signs, LINK_PING_AFTER) => {}
            () = coming => {}
        }
        assert!(begun.elapsed() >= LINK_PING_AFTER * 5 * 2 / 3 + LINK_PING_AFTER);
    }
}
