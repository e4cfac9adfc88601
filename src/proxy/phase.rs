//! Owns the words for what a client is doing, and for what of it can take too long.

/// What a client connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Shaking hands for TLS.
    Handshake,
    /// Nothing; a request may come.
    Idle,
    /// Sending the head of a request.
    Head,
    /// Sending the body of a request.
    Upload,
    /// Waiting for the head of the response.
    Waiting,
    /// Receiving the response.
    Download,
    /// Exchanging bytes with the backend that are nothing to us, or waiting for a backend to do so.
    Tunnel,
    /// Told that we close; what it still sends is thrown away.
    Linger,
    /// Nothing, on a connection of HTTP/2; a stream may come.
    Resting,
    /// Carrying streams, each of which has a phase of its own.
    Carrying,
}

/// What took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expiry {
    /// The handshake of TLS was not finished.
    Handshake,
    /// No request came.
    Idle,
    /// A request's head was not finished.
    Head,
    /// A body stood still.
    Stalled,
    /// No response's head came.
    Timeout,
    /// The time is over that the client itself gave the request.
    Deadline,
    /// The backend left and its drain timeout is over.
    Drained,
    /// A client that had shut down its sending side did not get a response's head.
    Gone,
    /// It did not close its side after we closed ours.
    Linger,
}
