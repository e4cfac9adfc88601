//! Owns the backend of the judge: it answers what it can read strictly, one request after the other, and writes down
//! everything that came.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::strict::{self, Request};

/// Says in an answer which of the requests since the last look it answers.
pub(crate) const RECORDED: &str = "x-recorded";

/// A proxy that keeps a silent connection for longer is not waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// A recording backend.
pub(crate) struct Recorder {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    /// Tells that everybody is accepted who connected before `Shared::last`.
    caught_up: mpsc::Receiver<()>,
}

/// What came.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// In the order in which they were complete.
    pub(crate) requests: Vec<Request>,
    /// Why a connection could not be read on.
    pub(crate) dirt: Vec<String>,
}

#[derive(Default)]
struct Shared {
    record: Mutex<Record>,
    connections: Mutex<Vec<(TcpStream, JoinHandle<()>)>>,
    /// The address from which it connects to itself.
    last: Mutex<Option<SocketAddr>>,
}

impl Recorder {
    pub(crate) fn start(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).expect("the address is free");
        let address = listener.local_addr().expect("it is bound");
        let (shared, (done, caught_up)) = (Arc::new(Shared::default()), mpsc::channel());
        let of_thread = shared.clone();
        thread::spawn(move || accept(&listener, &of_thread, &done));
        Self { address, shared, caught_up }
    }

    /// What came since the last look, once all connections are at their end: a proxy that keeps one is told to close it.
    pub(crate) fn take(&self) -> Record {
        let socket = Socket::new(Domain::for_address(self.address), Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(self.address.ip(), 0).into()).unwrap();
        *self.shared.last.lock().unwrap() = socket.local_addr().unwrap().as_socket();
        socket.connect(&self.address.into()).unwrap();
        self.caught_up.recv().expect("it accepts as long as it lives");
        for (stream, thread) in std::mem::take(&mut *self.shared.connections.lock().unwrap()) {
            // A proxy that would use it again lets go of it then; it may be closed already.
            let _ = stream.shutdown(Shutdown::Write);
            thread.join().expect("a connection can be read");
        }
        std::mem::take(&mut *self.shared.record.lock().unwrap())
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, done: &mpsc::Sender<()>) {
    while let Ok((stream, peer)) = listener.accept() {
        if shared.last.lock().unwrap().take_if(|last| *last == peer).is_some() {
            if done.send(()).is_err() {
                return;
            }
            continue;
        }
        let (of_thread, copy) = (shared.clone(), stream.try_clone().expect("a descriptor is left"));
        let thread = thread::spawn(move || serve(stream, &of_thread.record));
        shared.connections.lock().unwrap().push((copy, thread));
    }
}

fn serve(mut stream: TcpStream, record: &Mutex<Record>) {
    stream.set_read_timeout(Some(PATIENCE)).expect("it is no timeout of zero");
    let (mut kept, mut area) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        match strict::read(&kept) {
            Ok(Some((request, length))) => {
                kept.drain(..length);
                let is_head = request.target.starts_with("HEAD ");
                let mut record = record.lock().unwrap();
                record.requests.push(request);
                let number = record.requests.len();
                drop(record);
                let said = format!("{RECORDED}: {number}");
                let body = if is_head { "" } else { &said };
                let answer =
                    format!("HTTP/1.1 200 OK\r\n{said}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                // Who asked may be gone; what it asked is written down.
                let _ = stream.write_all(answer.as_bytes());
            }
            Ok(None) => match stream.read(&mut area) {
                Ok(read @ 1..) => kept.extend_from_slice(&area[..read]),
                Ok(0) | Err(_) => return,
            },
            Err(dirt) => {
                record.lock().unwrap().dirt.push(dirt);
                let _ = stream
                    .write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                let _ = stream.shutdown(Shutdown::Both);
                return;
            }
        }
    }
}
