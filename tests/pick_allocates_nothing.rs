//! The way from a request's key to its backend allocates nothing: counted, not believed.

#![allow(unsafe_code, reason = "an allocator cannot be written without; it only counts and passes on")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use guideway::balance::assignment::{Assignment, AssignmentBuilder, GroupLoad};
use guideway::balance::backend::{Backend, HttpVersion};
use guideway::balance::key::{KeySource, RequestParts};
use guideway::balance::pool::{Fill, Pool, PoolId, Readiness, Timeouts};
use guideway::balance::snapshot::PoolSnapshot;
use guideway::balance::table::SeatLoad;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

struct Request;

impl RequestParts for Request {
    fn headers(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        (name == "cookie").then_some(&b"a=1; session=s7"[..]).into_iter()
    }
    fn path(&self) -> &'static str {
        "/cart"
    }
    fn query(&self) -> Option<&str> {
        Some("id=9&user=ada")
    }
    fn host(&self) -> Option<&str> {
        Some("Shop.Example.com")
    }
    fn client_ip(&self) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, 7).into()
    }
}

/// Half of the seats in each of two groups.
fn assignment() -> Assignment {
    let group = |name: &str| GroupLoad { name: name.into(), weight: 1, seats: vec![SeatLoad::well(1); 5] };
    AssignmentBuilder::default().build(&[group("stable"), group("canary")], Some(1009), 7)
}

fn pool(source: KeySource) -> PoolSnapshot {
    let backend = |number: u16| {
        let name = format!("web-{number}");
        let address = (Ipv4Addr::LOCALHOST, 9000 + number).into();
        Some(Arc::new(Backend {
            id: name.as_str().into(),
            group: "stable".into(),
            name: name.into(),
            address,
            http: HttpVersion::Http1,
        }))
    };
    let pool = Pool {
        id: PoolId::new("shop", "web"),
        created_ms: 0,
        listeners: Vec::new(),
        groups: Vec::new(),
        table_size: None,
        fill: Fill::Seats,
        hash_on: vec![KeySource::Header("x-none".into()), source],
        readiness: Readiness::Require,
        drain_timeout: Duration::ZERO,
        timeouts: Timeouts::default(),
        max_request_body: None,
        access_log: None,
    };
    PoolSnapshot {
        pool: Arc::new(pool),
        table: Arc::new(assignment()),
        places: (0..10).map(backend).collect(),
        members: Box::new([]),
        digest: 0,
    }
}

#[test]
fn pick_allocates_nothing() {
    let sources = [
        KeySource::ClientIp,
        KeySource::Cookie("session".into()),
        KeySource::Query("user".into()),
        KeySource::Path,
        KeySource::Host,
    ];
    for source in sources {
        let pool = pool(source.clone());
        let before = ALLOCATIONS.with(Cell::get);
        let key = pool.key_hash(&Request);
        let picked = pool.pick(key);
        let allocations = ALLOCATIONS.with(Cell::get) - before;
        assert_eq!((picked.is_some(), allocations), (true, 0), "{source:?}");
    }
}

#[test]
fn the_allocator_of_this_test_counts() {
    let before = ALLOCATIONS.with(Cell::get);
    drop(std::hint::black_box(Box::new(7)));
    assert_eq!(ALLOCATIONS.with(Cell::get) - before, 1);
}
