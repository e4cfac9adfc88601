//! Owns every limit of the traffic side, each with its reason. A queue, buffer, wait or retry that is
//! not bounded here does not belong into the proxy.

use std::num::{NonZeroU64, NonZeroUsize};
use std::time::Duration;

/// Bytes of a request's or response's head. Every server we know refuses longer ones or is near it.
pub(super) const MAX_HEAD_BYTES: usize = 32 * 1024;

/// Fields in a head. Browsers send some twenty; a parser of this many fits the stack.
pub(super) const MAX_HEADER_FIELDS: usize = 100;

/// Bytes of one read. What the other side does not take of them is all that a connection may hold in one
/// direction, besides a head; a slow reader costs no more.
pub(super) const BUFFER_BYTES: usize = 64 * 1024;

/// Reads for one direction of an exchange before the other direction has its turn, and other connections.
/// It is 1 MiB at best, which is enough to make the turn itself cheap.
pub(super) const READS_PER_TURN: usize = 16;

/// Bytes that the head of an answer, written anew, may be longer than it came: two for each field at worst,
/// and less than 400 for the lines of this hop. The head of a request rarely grows by more.
pub(super) const HEAD_GROWTH_BYTES: usize = 1024;

/// Times a request may pass through a Guideway. Chains of three are long; whoever comes the tenth time goes in circles,
/// because a pool's backend is the pool's own listener.
pub(super) const MAX_HOPS: u8 = 10;

/// Bytes of all interim answers to one request that are passed on. Early hints are a kilobyte or two; what is above
/// this is not worth keeping for a client that does not read.
pub(super) const MAX_INTERIM_BYTES: usize = 16 * 1024;

/// Bytes of all extensions and trailers of a chunked body. Nobody uses the former, and checksums and signatures are
/// short, so more is an attack.
pub(super) const MAX_CHUNK_OVERHEAD: usize = 16 * 1024;

/// Tries of one request, the first included. More would multiply an overload.
pub(super) const MAX_TRIES: usize = 3;

/// Candidates looked at to find one that did not just refuse a connection.
pub(super) const MAX_CANDIDATES_SEEN: usize = 16;

/// Unused connections kept for one backend on one worker thread, or clients whose own ones are.
pub(super) const MAX_IDLE_PER_BACKEND: usize = 64;

/// Streams that a client of HTTP/2 may have open at a time: what browsers and gRPC expect at least.
pub(super) const MAX_STREAMS: u32 = 100;

/// What a peer of HTTP/2 may send before we took it, of one stream and of all of a connection together. It is what a
/// connection may hold of bodies that nobody takes.
pub(super) const STREAM_WINDOW: u32 = 64 * 1024;
/// See `STREAM_WINDOW`.
pub(super) const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Bytes of one stream of HTTP/2 that wait for its connection.
pub(super) const MAX_STREAM_OUT: usize = 64 * 1024;

/// Streams on one connection to a backend, if the backend itself sets no lower limit: more would share its window.
pub(super) const MAX_STREAMS_PER_LINK: usize = 256;

/// Connections of HTTP/2 to one backend on one worker thread. Backends that take 100 streams, as most do, get 1,600.
pub(super) const MAX_LINKS: usize = 16;

/// How long a connection of HTTP/2 to a backend is kept without a stream. Servers say goodbye before they close one,
/// so no request is lost to it.
pub(super) const LINK_IDLE: Duration = Duration::from_secs(60);

/// How long a backend's kernel may leave what we sent without an acknowledgement. Many requests share a connection, so
/// one to a host that vanished must not live on as long as the kernel would let it, which is a quarter of an hour.
pub(super) const LINK_SILENCE: Duration = Duration::from_secs(5);

/// How long a backend may send nothing at all while streams are open, before it is asked whether it is there (PING), and
/// how long it may be silent to that. It is not lost before twice the first has passed: a process that collects its
/// garbage, or was stopped for a moment, goes on after it.
pub(super) const LINK_PING_AFTER: Duration = Duration::from_secs(10);
/// See `LINK_PING_AFTER`.
pub(super) const LINK_PING_WAIT: Duration = Duration::from_secs(10);

/// How long a backend that answered a ping and still sends nothing of an answer is not asked again. Servers of gRPC take
/// it for abuse when somebody asks more often, and end the connection.
pub(super) const LINK_PING_EVERY: Duration = Duration::from_secs(300);

/// Streams that we reset on a connection to a backend and of which frames may still come. Clients cancel, and what the
/// backend sent meanwhile is no mistake of its.
pub(super) const MAX_RESETS_REMEMBERED: usize = 1024;

/// Bytes of a request's body that are kept until the backend answers, in case it says that it did not begin with the
/// request. Most calls of gRPC fit.
pub(super) const MAX_REPLAY_BYTES: usize = 16 * 1024;

/// Frames that carry nothing (PING, SETTINGS, RST_STREAM, WINDOW_UPDATE, empty DATA and the like) which a client may
/// send ahead of what earns them: it gets some for every answer and every piece of one, and some with the time.
/// Busy clients stay above half of it; a flood is over after a few milliseconds.
pub(super) const FRAME_CREDIT: u32 = 1000;

/// What of the `FRAME_CREDIT` comes back in a second, so that a client may cancel or ping at a rate of this.
pub(super) const FRAME_CREDIT_PER_SECOND: u32 = 200;

/// What of it an answer earns: the request's end, two window updates and a ping.
pub(super) const FRAME_CREDIT_PER_ANSWER: u32 = 4;

/// What of it a piece of an answer's body earns: a window update for the stream and one for the connection.
pub(super) const FRAME_CREDIT_PER_PIECE: u32 = 2;

/// Waiting connections the kernel keeps for one listener; the kernel cuts it to `net.core.somaxconn`.
pub(super) const ACCEPT_BACKLOG: i32 = 4096;

/// Grain of all waits that have no timer of their own: a worker looks at its connections this often.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// While memory runs out, how long a client may stay connected without sending a request. Long enough for the next
/// request of a page that is loading, short enough to matter before memory is gone.
pub(super) const OVERLOAD_IDLE: Duration = Duration::from_secs(5);

/// How long a backend that refused a connection is tried last. Long enough that a dead backend costs
/// a handful of requests a failed connect, short enough that a restarted one is found at once.
pub(super) const REFUSAL_MEMORY: Duration = Duration::from_secs(1);

/// How long somebody who gives up must have waited for a connection for its backend to be tried last, as one that
/// refused it. Within a cluster it takes a few milliseconds, so who leaves sooner says nothing of the backend; and where
/// a pool's requests are over before its connects are, nobody else would ever find out.
pub(super) const ABANDONED_CONNECT: Duration = Duration::from_millis(300);

/// How long accepting pauses when the process has no file descriptor left.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often a worker says that it cannot accept; each time is counted.
pub(super) const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// How long a flow of UDP may be silent where half of all that there may be are in use. Most flows are one question
/// and one answer, and those who come shall not be refused because of those who are done.
pub(super) const CROWDED_FLOW_IDLE: Duration = Duration::from_secs(5);

/// How long a flow of UDP stays with a backend that is not ready after its last answer. Sessions outlive a probe that
/// failed; who speaks to a machine that is down, or sends without ever being answered, loses little.
pub(super) const UNREADY_FLOW_SILENCE: Duration = Duration::from_secs(5);

/// How long a listener that refuses newcomers still accepts those whose handshake was under way.
pub(super) const LISTENER_LINGER: Duration = Duration::from_millis(150);

/// How often a port that could not be bound is tried again.
pub(super) const BIND_RETRY: Duration = Duration::from_secs(2);

/// Bytes of access log that a worker thread gathers before it hands them on without waiting for its tick. Large
/// enough that handing on is rare beside writing lines.
pub(super) const LOG_BATCH_BYTES: usize = 16 * 1024;

/// Batches of access log that wait to be written. With 4 MiB a disk may stand still for a moment under full load, and
/// for ten seconds where only ticks hand on.
pub(super) const LOG_BATCHES: usize = 256;

/// How long the end of the process waits for the last lines of the access log.
pub(super) const LOG_LAST_WAIT: Duration = Duration::from_secs(1);

/// Bytes of a method, a host and a path that the access log keeps, so that no client fills the disk with one
/// request. Longer ones are rare among those who have nothing to hide.
pub(super) const MAX_LOGGED_METHOD: usize = 32;
/// See `MAX_LOGGED_METHOD`; names of DNS are no longer.
pub(super) const MAX_LOGGED_HOST: usize = 256;
/// See `MAX_LOGGED_METHOD`.
pub(super) const MAX_LOGGED_PATH: usize = 1024;

/// On a connection whose bytes are nothing to us: the silence after which the kernel asks whether the peer
/// is still there, how often it asks again, and how many questions in a row may stay without an answer. A peer that
/// is gone is known after two minutes.
pub(super) const PROBE_AFTER: Duration = Duration::from_secs(60);
/// See `PROBE_AFTER`.
pub(super) const PROBE_EVERY: Duration = Duration::from_secs(15);
/// See `PROBE_AFTER`.
pub(super) const PROBES: u32 = 4;

/// Pipes of one worker thread, of two descriptors each, through which bytes pass within the kernel. One is in use while
/// its receiver does not take what is in it; where more are wanted, bytes pass by way of our memory.
pub(super) const MAX_PIPES: usize = 32;

/// Bytes of one such pipe, in memory of the kernel. At its usual 64 KiB half of what is saved is lost to calls; the
/// kernel gives a user 64 MiB for pipes.
pub(super) const PIPE_BYTES: usize = 256 * 1024;

/// Pipes full for one direction before others have their turn: as much as `READS_PER_TURN` at best.
pub(super) const PIPES_PER_TURN: usize = 4;

/// Fewer bytes at a time are not worth a pipe: two calls to the kernel cost what copying them costs.
pub(super) const MIN_PIPED: usize = 16 * 1024;

/// Limits that a deployment or a test may want to differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Client connections of the process.
    pub connections: usize,
    /// Client connections of one address, so that one client cannot take all.
    pub connections_per_client: usize,
    /// Flows of UDP of the process.
    pub flows: usize,
    /// Flows of UDP of one address, so that one client cannot take all.
    pub flows_per_client: usize,
    /// How long a flow of UDP may be silent in both directions before it is forgotten, and its client's next datagram
    /// finds a backend anew. Most protocols that keep state speak more often.
    pub flow_idle: Duration,
    /// From the first moment of a connection that speaks TLS to the end of its handshake. Two round trips do, so this
    /// is for the slowest of networks.
    pub handshake: Duration,
    /// How long a client may stay connected without sending a request. Above the 60 s that other
    /// balancers keep idle connections for, so that they close first.
    pub idle: Duration,
    /// From the first byte of a request's head to its last.
    pub head: Duration,
    /// How long a body may stand still in either direction.
    pub body_idle: Duration,
    /// How long nothing may move in either direction of a connection of TCP or one switched to another protocol. The
    /// kernel probes for a side that is gone, so this ends only what nobody uses.
    pub tunnel_idle: Duration,
    /// How long a client that has shut down its sending side waits for the response's head. A client that is gone
    /// looks the same, and its backend should not work for nobody; nginx and Envoy give up at once for that, HAProxy
    /// waits for the backend. A moment serves the scripts that ask and shut down, and costs a backend little.
    pub half_close: Duration,
    /// How long we read on after refusing the rest of a request, so that the client sees our answer
    /// and not a reset.
    pub linger: Duration,
    /// How long an unused connection to a backend is kept. Below the 5 s after which Node, Apache and
    /// uvicorn close theirs: a request that meets such a close is lost if it may not be repeated.
    pub upstream_idle: Duration,
    /// While draining, and on a port that no pool has any more, how long an idle client connection is kept for the
    /// request that may be on its way. Every answer then says `Connection: close`, so busy clients are gone sooner.
    pub drain_idle: Duration,
}

/// Ceilings that somebody sets in the place of those that a process finds for itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ceilings {
    /// Client connections of the process; a share of the files it may open when absent.
    pub connections: Option<NonZeroUsize>,
    /// Client connections of one address; half of all when absent.
    pub connections_per_client: Option<NonZeroUsize>,
    /// Bytes of memory; what its control groups allow when absent.
    pub memory: Option<NonZeroU64>,
}

impl Limits {
    /// The limits of a process that may open `descriptors` files.
    ///
    /// A request or a connection needs two descriptors, one on either side, so clients get 45 % of them. A flow of UDP
    /// needs one, and all of them get 5 %; a flood of those shall not keep the others out. The rest is for listeners
    /// and the API server.
    pub fn for_descriptors(descriptors: u64) -> Self {
        let share = descriptors.saturating_mul(45) / 100;
        let connections = usize::try_from(share).unwrap_or(usize::MAX).max(1);
        let flows = (connections / 9).max(1);
        Self {
            connections,
            connections_per_client: (connections / 2).max(1),
            flows,
            flows_per_client: (flows / 2).max(1),
            flow_idle: Duration::from_secs(60),
            handshake: Duration::from_secs(5),
            idle: Duration::from_secs(75),
            head: Duration::from_secs(10),
            body_idle: Duration::from_secs(60),
            tunnel_idle: Duration::from_secs(3600),
            half_close: Duration::from_secs(1),
            linger: Duration::from_secs(2),
            upstream_idle: Duration::from_secs(4),
            drain_idle: Duration::from_secs(8),
        }
    }

    /// These limits with the ceilings that are set.
    pub fn under(self, ceilings: &Ceilings) -> Self {
        let connections = ceilings.connections.map_or(self.connections, NonZeroUsize::get);
        let half = (connections / 2).max(1);
        let connections_per_client = ceilings.connections_per_client.map_or(half, NonZeroUsize::get);
        Self { connections, connections_per_client, ..self }
    }

    /// The limits of this process as it runs, after raising its soft limit of open files to the hard one.
    pub fn of_this_process() -> Self {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let limit = getrlimit(Resource::Nofile);
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        let in_force = if setrlimit(Resource::Nofile, raised).is_ok() { raised } else { limit };
        Self::for_descriptors(in_force.current.unwrap_or(u64::from(u32::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_less_than_half_of_the_descriptors() {
        let limits = Limits::for_descriptors(20_000);
        assert_eq!((limits.connections, limits.connections_per_client), (9_000, 4_500));
        assert_eq!((limits.flows, limits.flows_per_client), (1_000, 500));
    }

    #[test]
    fn a_ceiling_replaces_what_was_found() {
        let under = |connections, connections_per_client| {
            let [connections, connections_per_client] =
                [connections, connections_per_client].map(NonZeroUsize::new);
            let ceilings = Ceilings { connections, connections_per_client, memory: None };
            let limits = Limits::for_descriptors(20_000).under(&ceilings);
            (limits.connections, limits.connections_per_client)
        };
        assert_eq!(under(0, 0), (9_000, 4_500));
        assert_eq!(under(100, 0), (100, 50));
        assert_eq!(under(0, 7), (9_000, 7));
        assert_eq!(under(1, 0), (1, 1));
    }

    #[test]
    fn the_smallest_process_still_serves_somebody() {
        let limits = Limits::for_descriptors(1);
        assert_eq!((limits.connections, limits.connections_per_client), (1, 1));
        assert_eq!((limits.flows, limits.flows_per_client), (1, 1));
    }
}
