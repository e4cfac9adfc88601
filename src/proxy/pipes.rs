//! Owns the pipes through which bytes pass from one socket to another within the kernel. Where there are many bytes that
//! is a third cheaper than by way of our memory; where there are few it is no cheaper, and would take descriptors.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::limits::{MAX_PIPES, PIPE_BYTES};

/// The pipes of one worker thread.
#[derive(Debug, Default)]
pub(super) struct Pipes {
    /// Empty.
    free: RefCell<Vec<Ends>>,
    /// How many are in use.
    taken: Cell<usize>,
}

/// One pipe, and how much is in it.
#[derive(Debug)]
pub(super) struct Pipe {
    ends: Ends,
    held: usize,
}

#[derive(Debug)]
struct Ends {
    way_out: OwnedFd,
    way_in: OwnedFd,
}

impl Pipes {
    /// Whether there is one for somebody.
    pub(super) fn has_room(&self) -> bool {
        self.taken.get() < MAX_PIPES
    }

    /// An empty pipe, unless too many are in use or the process has no descriptors left.
    pub(super) fn take(&self) -> Option<Pipe> {
        if !self.has_room() {
            return None;
        }
        let ends = self.free.borrow_mut().pop().or_else(Ends::open)?;
        self.taken.set(self.taken.get() + 1);
        Some(Pipe { ends, held: 0 })
    }

    /// Takes a pipe back. One that is not empty is closed: its bytes are for nobody else.
    pub(super) fn give_back(&self, pipe: Pipe) {
        self.taken.set(self.taken.get() - 1);
        if pipe.is_empty() {
            self.free.borrow_mut().push(pipe.ends);
        }
    }
}

impl Ends {
    fn open() -> Option<Self> {
        let (way_out, way_in) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        // A smaller one works too: the kernel gives a user so much memory for pipes and no more.
        let _ = fcntl_setpipe_size(&way_in, PIPE_BYTES);
        Some(Self { way_out, way_in })
    }
}

impl Pipe {
    pub(super) fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Fills it while it is empty; how many bytes came, 0 when the sender closed its side.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, sender: &TcpStream) -> Poll<io::Result<usize>> {
        loop {
            ready!(sender.poll_read_ready(cx))?;
            match sender.try_io(Interest::READABLE, || pass(sender, &self.ends.way_in, PIPE_BYTES)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                filled => {
                    self.held = *filled.as_ref().unwrap_or(&0);
                    return Poll::Ready(filled);
                }
            }
        }
    }

    /// Empties it, as far as the receiver takes it; how many bytes went.
    pub(super) fn poll_empty(
        &mut self,
        cx: &mut Context<'_>,
        receiver: &TcpStream,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(receiver.poll_write_ready(cx))?;
            match receiver.try_io(Interest::WRITABLE, || pass(&self.ends.way_out, receiver, self.held)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                emptied => {
                    self.held -= *emptied.as_ref().unwrap_or(&0);
                    return Poll::Ready(emptied);
                }
            }
        }
    }
}

fn pass(from: impl std::os::fd::AsFd, to: impl std::os::fd::AsFd, most: usize) -> io::Result<usize> {
    Ok(splice(from, None, to, None, most, SpliceFlags::MOVE | SpliceFlags::NONBLOCK)?)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn bytes_come_out_as_they_went_in() {
        let ((mut sender, from), (to, mut receiver)) = (pair().await, pair().await);
        let pipes = Pipes::default();
        let mut pipe = pipes.take().unwrap();
        sender.write_all(b"through the kernel").await.unwrap();
        assert_eq!(poll_fn(|cx| pipe.poll_fill(cx, &from)).await.unwrap(), 18);
        assert!(!pipe.is_empty());
        while !pipe.is_empty() {
            poll_fn(|cx| pipe.poll_empty(cx, &to)).await.unwrap();
        }
        let mut received = [0; 18];
        receiver.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"through the kernel");
        drop(sender);
        assert_eq!(poll_fn(|cx| pipe.poll_fill(cx, &from)).await.unwrap(), 0, "the end");
    }

    #[tokio::test]
    async fn what_is_left_in_a_pipe_reaches_nobody_else() {
        let (mut sender, from) = pair().await;
        let pipes = Pipes::default();
        let mut pipe = pipes.take().unwrap();
        sender.write_all(b"secret").await.unwrap();
        poll_fn(|cx| pipe.poll_fill(cx, &from)).await.unwrap();
        pipes.give_back(pipe);
        assert!(pipes.free.borrow().is_empty());
        pipes.give_back(pipes.take().unwrap());
        assert_eq!(pipes.free.borrow().len(), 1, "an empty one is used again");
    }

    #[test]
    fn there_are_only_so_many_pipes() {
        let pipes = Pipes::default();
        let taken: Vec<Pipe> = std::iter::from_fn(|| pipes.take()).collect();
        assert_eq!(taken.len(), MAX_PIPES);
        assert!(!pipes.has_room());
        taken.into_iter().for_each(|pipe| pipes.give_back(pipe));
        assert!(pipes.has_room());
    }
}
