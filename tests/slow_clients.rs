//! What a client costs that takes, sends or asks as slowly as it can: a bound that no request moves, counted byte by
//! byte. Alone in its process, because it counts every allocation.

#![allow(unsafe_code, reason = "an allocator cannot be written without; it only counts and passes on")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

#[path = "proxy/stage.rs"]
#[allow(dead_code, reason = "shared with the other tests of the proxy")]
mod stage;

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicIsize, Ordering::Relaxed};
use std::time::Duration;

use socket2::SockRef;
use stage::{Peer, Setup, Stage};
use tokio::net::{TcpListener, TcpStream};

static LIVE: AtomicIsize = AtomicIsize::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size().cast_signed(), Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size().cast_signed(), Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const CLIENTS: usize = 100;
const KIB: isize = 1024;
/// What a side of a connection sends in one go, without memory of its own.
static FLOOD: [u8; 256 * 1024] = [b'x'; 256 * 1024];
const CONNECTIONS: &str = "guideway_connections{namespace=\"shop\",pool=\"web\"}";

/// A backend that reads nothing after a head, and sends as much of an answer as is taken.
async fn flooding() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // Memory of the kernel is not what this is about.
            SockRef::from(&stream).set_send_buffer_size(4096).unwrap();
            tokio::spawn(async move {
                stream.readable().await.unwrap();
                let mut first = [0; 4];
                if stream.try_read(&mut first).unwrap_or(0) == 4 && &first == b"POST" {
                    return std::future::pending().await;
                }
                let mut unsent = &b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n"[..];
                while stream.writable().await.is_ok() {
                    match stream.try_write(unsent) {
                        Ok(sent) => unsent = if sent < unsent.len() { &unsent[sent..] } else { &FLOOD },
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                        Err(_) => return,
                    }
                }
            });
        }
    });
    address
}

async fn connect(stage: &Stage) -> Peer {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, stage.port)).await.unwrap();
    SockRef::from(&stream).set_recv_buffer_size(4096).unwrap();
    Peer::of(stream)
}

/// Lets the clients send `more` until nothing moves any more; the most memory that was in use meanwhile.
async fn stall(stage: &Stage, clients: &[Peer], more: &[u8]) -> isize {
    let moved = || {
        ["received", "sent"].map(|direction| {
            stage.series(&format!(
                "guideway_bytes_total{{namespace=\"shop\",pool=\"web\",direction=\"{direction}\"}}"
            ))
        })
    };
    let (mut before, mut still, mut most) = (moved(), 0, LIVE.load(Relaxed));
    while still < 5 {
        clients.iter().for_each(|client| while !more.is_empty() && client.stream.try_write(more).is_ok() {});
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = moved();
        still = if now == before { still + 1 } else { 0 };
        before = now;
        most = most.max(LIVE.load(Relaxed));
    }
    most
}

/// Checks what each of many clients costs that sends `begin`, and `more` as long as that is taken.
async fn check(stage: &Stage, begin: &str, more: &[u8], most: isize) {
    let before = LIVE.load(Relaxed);
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = connect(stage).await;
        client.write(begin).await;
        clients.push(client);
    }
    stage.settles(CONNECTIONS, CLIENTS as f64).await;
    let each = (stall(stage, &clients, more).await - before) / CLIENTS.cast_signed();
    let what = begin.lines().next().unwrap_or("silence");
    println!("{what:.40}: {each} bytes for each client");
    assert!(each < most, "{what:.40}: {each} bytes for each client");
    drop(clients);
    stage.settles(CONNECTIONS, 0.0).await;
    stall(stage, &[], b"").await;
    let left = (LIVE.load(Relaxed) - before) / CLIENTS.cast_signed();
    assert!(left < KIB, "{what:.40}: {left} bytes are left of each client");
}

/// The figures hold the tasks and sockets of both ends and of the test as well, which are some 6 KiB.
#[tokio::test]
async fn a_slow_client_costs_one_read_and_a_head_at_most() {
    let mut setup = Setup::default();
    // That somebody left behind a body that nobody takes shows when it stood still for so long.
    setup.limits.body_idle = Duration::from_secs(2);
    let stage = Stage::with(setup, &[flooding().await]).await;
    // What is made once and kept.
    for begin in
        ["GET / HTTP/1.1\r\nHost: a\r\n\r\n", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"]
    {
        let mut client = connect(&stage).await;
        client.write(begin).await;
        stall(&stage, &[], b"").await;
    }
    stage.settles(CONNECTIONS, 0.0).await;

    check(&stage, "GET /slow-reader HTTP/1.1\r\nHost: a\r\n\r\n", b"", 80 * KIB).await;
    let upload = "POST /slow-backend HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n";
    check(&stage, upload, &FLOOD, 80 * KIB).await;
    let head = format!("GET /endless-head HTTP/1.1\r\nHost: a\r\nX-Long: {}", "x".repeat(32_000));
    check(&stage, &head, b"", 80 * KIB).await;
    let pipelined = format!("POST /pipelined HTTP/1.1\r\nHost: a\r\n\r\n{}", "GET / HTTP/1.1\r\n".repeat(10));
    check(&stage, &pipelined, &FLOOD, 80 * KIB).await;
    check(&stage, "", b"", 16 * KIB).await;
}
