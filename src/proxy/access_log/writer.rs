//! Owns the thread that writes the access log. It alone touches the file, so it alone waits for the disk or for
//! whoever reads our standard output.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::recorder::{Batch, Sink};
use super::{AccessLogOptions, LineForm, LogTarget};
use crate::metrics::TrafficMeters;
use crate::proxy::limits::{LOG_BATCHES, LOG_LAST_WAIT};

/// The file belongs to us and to a group that may read it: it tells who asked for what.
const FILE_MODE: u32 = 0o640;

/// What the thread is told.
#[derive(Debug)]
pub(super) enum Order {
    /// Write this.
    Write(Batch),
    /// See whether the file is to be opened anew.
    Reopen,
}

/// The access log of the process, while its thread runs.
#[derive(Debug)]
pub(in crate::proxy) struct AccessLog {
    orders: SyncSender<Order>,
    reopen: Arc<AtomicBool>,
    ended: oneshot::Receiver<()>,
    form: LineForm,
    meters: Arc<TrafficMeters>,
}

impl AccessLog {
    /// Opens the file and starts the thread.
    pub(in crate::proxy) fn start(options: AccessLogOptions, meters: Arc<TrafficMeters>) -> io::Result<Self> {
        let (orders, ordered) = sync_channel(LOG_BATCHES);
        let (ending, ended) = oneshot::channel();
        let reopen = Arc::new(AtomicBool::new(false));
        let target: Box<dyn Target> = match options.target {
            LogTarget::Stdout => Box::new(io::stdout()),
            LogTarget::File(path) => Box::new(LogFile { file: open(&path)?, path: path.into() }),
        };
        let writer = Writer { target, torn: false, failing: false, meters: meters.clone() };
        let asked = reopen.clone();
        thread::Builder::new().name("guideway-access-log".into()).spawn(move || {
            // Dropped last, also when the thread unwinds.
            let _ending = ending;
            writer.run(&ordered, &asked);
        })?;
        Ok(Self { orders, reopen, ended, form: options.form, meters })
    }

    /// Where a worker's lines go.
    pub(in crate::proxy) fn sink(&self) -> Sink {
        Sink { orders: self.orders.clone(), form: self.form, meters: self.meters.clone() }
    }

    /// Opens the file anew before the next line, because somebody moved it away.
    pub(in crate::proxy) fn reopen(&self) {
        self.reopen.store(true, Relaxed);
        // With a full queue the thread is about to look anyway.
        let _ = self.orders.try_send(Order::Reopen);
    }

    /// Waits until what was handed on is written, but not for ever.
    pub(in crate::proxy) async fn finish(self) {
        drop(self.orders);
        if timeout(LOG_LAST_WAIT, self.ended).await.is_err() {
            tracing::warn!("the access log is behind; its last lines are lost");
        }
    }
}

/// What lines can be written to.
trait Target: Write + Send {
    /// Opens it anew, if it is something that can be moved away.
    fn reopen(&mut self) -> io::Result<()>;
}

impl Target for io::Stdout {
    fn reopen(&mut self) -> io::Result<()> {
        tracing::info!(
            "nothing to open anew: there is no file of an access log, and all other files are followed"
        );
        Ok(())
    }
}

struct LogFile {
    file: File,
    path: Box<Path>,
}

fn open(path: &Path) -> io::Result<File> {
    let opened = OpenOptions::new().append(true).create(true).mode(FILE_MODE).open(path);
    opened.map_err(|error| {
        io::Error::new(error.kind(), format!("the access log {} cannot be opened: {error}", path.display()))
    })
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Target for LogFile {
    fn reopen(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
        tracing::info!(path = %self.path.display(), "opened the access log anew");
        Ok(())
    }
}

struct Writer {
    target: Box<dyn Target>,
    /// The last write may have ended within a line.
    torn: bool,
    failing: bool,
    meters: Arc<TrafficMeters>,
}

impl Writer {
    /// Writes until nobody is left to give orders.
    fn run(mut self, orders: &Receiver<Order>, reopen: &AtomicBool) {
        for order in orders {
            if reopen.swap(false, Relaxed) {
                self.reopen();
            }
            if let Order::Write(batch) = order {
                self.write(&batch);
            }
        }
    }

    fn reopen(&mut self) {
        if let Err(error) = self.target.reopen() {
            tracing::warn!(%error, "going on with the file of the access log that was open");
        }
    }

    fn write(&mut self, batch: &Batch) {
        let end = if self.torn { &b"\n"[..] } else { b"" };
        let target = &mut self.target;
        let written =
            target.write_all(end).and_then(|()| target.write_all(&batch.bytes)).and_then(|()| target.flush());
        self.torn = written.is_err();
        match written {
            Ok(()) if self.failing => tracing::info!("the access log can be written again"),
            Ok(()) => {}
            Err(error) => {
                self.meters.drop_log_lines(batch.lines);
                if !self.failing {
                    tracing::warn!(%error, "cannot write the access log; its lines are dropped and counted");
                }
            }
        }
        self.failing = self.torn;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Takes so many bytes and then none, until somebody makes room.
    #[derive(Clone, Default)]
    struct Disk {
        bytes: Arc<Mutex<Vec<u8>>>,
        room: Arc<Mutex<usize>>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut room = self.room.lock().unwrap();
            let taken = bytes.len().min(*room);
            if taken == 0 && !bytes.is_empty() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            *room -= taken;
            self.bytes.lock().unwrap().extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Target for Disk {
        fn reopen(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_costs_lines_that_are_counted_and_joins_none() {
        let (disk, meters) = (Disk::default(), Arc::new(TrafficMeters::default()));
        let target = Box::new(disk.clone());
        let mut writer = Writer { target, torn: false, failing: false, meters: meters.clone() };
        let batch = |text: &str| Batch { bytes: text.into(), lines: text.lines().count() as u64 };
        *disk.room.lock().unwrap() = 5;
        writer.write(&batch("one\ntwo\n"));
        writer.write(&batch("three\n"));
        *disk.room.lock().unwrap() = 100;
        writer.write(&batch("four\n"));
        writer.write(&batch("five\n"));
        assert_eq!(*disk.bytes.lock().unwrap(), b"one\nt\nfour\nfive\n");
        assert_eq!(meters.dropped_log_lines(), 3);
    }

    #[test]
    fn a_file_that_is_gone_for_good_keeps_its_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gone/access.log");
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        let mut file = LogFile { file: open(&path).unwrap(), path: path.clone().into() };
        std::fs::rename(path.parent().unwrap(), folder.path().join("moved")).unwrap();
        assert!(file.reopen().is_err());
        file.write_all(b"kept\n").unwrap();
        assert_eq!(std::fs::read(folder.path().join("moved/access.log")).unwrap(), b"kept\n");
    }
}
