//! Floods of frames that cost us more than their sender: each ends its connection soon, and nobody else notices.

use std::time::Duration;

use tokio::io::AsyncWriteExt;

use super::stage::{Backend, Stage};
use super::streams::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, Http2, PING, PSEUDO, RST_STREAM, RawHttp2,
    SETTINGS, WINDOW_UPDATE, block, frame, get, soon,
};

/// What no flood gets to send.
const MOST_BYTES: usize = 4 << 20;

/// Sends what `wave` makes for one number after the other until the connection ends; how many those were.
async fn flood(stage: &Stage, wave: impl Fn(u32) -> Vec<u8>) -> u32 {
    let RawHttp2 { stream } = RawHttp2::connect(stage).await;
    let (mut reading, mut writing) = stream.into_split();
    // Whoever is not read from sends nothing either.
    let reader = tokio::spawn(async move { tokio::io::copy(&mut reading, &mut tokio::io::sink()).await });
    let mut bytes = 0;
    let sending = async {
        for number in 0.. {
            let frames = wave(number);
            bytes += frames.len();
            if writing.write_all(&frames).await.is_err() || reader.is_finished() {
                return number;
            }
            assert!(bytes < MOST_BYTES, "{number} waves, and it goes on");
            if number % 50 == 0 {
                // The proxy shares this thread's processor, and its answer takes a moment.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        0
    };
    soon(sending).await
}

async fn check(name: &str, most: u32, wave: impl Fn(u32) -> Vec<u8>) {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    backend.answer_all("ok");
    let mut bystander = Http2::connect(&stage).await;
    let sent = flood(&stage, wave).await;
    assert!(sent <= most, "{name}: {sent} waves");
    assert_eq!(bystander.ask(get("/")).await.body, "ok", "{name}");
}

fn request(number: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, 2 * number + 1, &block(&PSEUDO))
}

#[tokio::test]
async fn requests_that_are_cancelled_at_once_are_bounded() {
    check("rapid reset", 2000, |number| {
        [request(number), frame(RST_STREAM, 0, 2 * number + 1, &[0, 0, 0, 8])].concat()
    })
    .await;
}

#[tokio::test]
async fn requests_that_make_us_reset_them_are_bounded() {
    check("made you reset", 2000, |number| {
        [request(number), frame(WINDOW_UPDATE, 0, 2 * number + 1, &[0; 4])].concat()
    })
    .await;
}

#[tokio::test]
async fn a_head_without_an_end_is_bounded() {
    check("continuation", 500, |number| match number {
        0 => frame(HEADERS, END_STREAM, 1, &block(&PSEUDO)),
        _ => frame(CONTINUATION, 0, 1, &block(&[("x-filler", &"x".repeat(100))]).repeat(50)),
    })
    .await;
}

#[tokio::test]
async fn empty_data_is_bounded() {
    check("empty data", 2000, |number| match number {
        0 => frame(HEADERS, END_HEADERS, 1, &block(&PSEUDO)),
        _ => frame(DATA, 0, 1, &[]),
    })
    .await;
}

#[tokio::test]
async fn pings_are_bounded() {
    check("ping", 2000, |_| frame(PING, 0, 0, &[0; 8])).await;
}

#[tokio::test]
async fn settings_are_bounded() {
    check("settings", 2000, |_| frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])).await;
}

#[tokio::test]
async fn a_flood_is_counted() {
    let stage = Stage::new(&[]).await;
    flood(&stage, |_| frame(PING, 0, 0, &[0; 8])).await;
    assert_eq!(stage.series("guideway_connections_refused_total{limit=\"flood\"}"), 1.0);
}

#[tokio::test]
async fn a_client_that_is_busy_is_no_flood() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    backend.answer_all("ok");
    let mut client = Http2::connect(&stage).await;
    for _ in 0..3000 {
        // Each answer makes the client open the window of the connection and that of the stream.
        assert_eq!(client.ask(get("/")).await.body, "ok");
    }
}
