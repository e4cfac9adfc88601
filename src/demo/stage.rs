//! Owns the thread on which demo backends and load run, apart from the proxy's workers, so that what is
//! measured and what measures do not wait for each other in one queue.

use std::io;
use std::net::SocketAddr;
use std::thread::JoinHandle;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::backend::{BackendHandle, DemoBackend};
use super::load::{Load, LoadPlan};

/// A thread with a runtime of its own.
#[derive(Debug)]
pub struct Stage {
    runtime: Handle,
    stop: CancellationToken,
    backends: TaskTracker,
    thread: JoinHandle<()>,
}

impl Stage {
    /// Starts the thread.
    pub fn open() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (handle, closed) = (runtime.handle().clone(), CancellationToken::new());
        let (stop, backends) = (closed.clone(), TaskTracker::new());
        let serving = backends.clone();
        let until_closed = async move {
            closed.cancelled().await;
            serving.wait().await;
        };
        let thread =
            std::thread::Builder::new().name("demo".into()).spawn(move || runtime.block_on(until_closed))?;
        Ok(Self { runtime: handle, stop, backends, thread })
    }

    /// Binds a backend and lets it serve until the stage closes.
    pub async fn backend(&self, name: &str, address: SocketAddr) -> io::Result<BackendHandle> {
        let backend = {
            let name = name.to_owned();
            // A socket belongs to the runtime it was made in.
            let bound = self.runtime.spawn(async move { DemoBackend::bind(&name, address).await });
            bound.await.map_err(io::Error::other)??
        };
        let handle = backend.handle();
        self.backends.spawn_on(backend.serve(self.stop.clone()), &self.runtime);
        Ok(handle)
    }

    /// Begins a load that ends with its duration, or when the stage closes.
    pub fn load(&self, plan: LoadPlan) -> Load {
        let _inside = self.runtime.enter();
        Load::start(plan, self.stop.child_token())
    }

    /// Ends the backends and the load, and returns when the requests in flight are done.
    pub async fn close(self) -> io::Result<()> {
        self.backends.close();
        self.stop.cancel();
        let joined = tokio::task::spawn_blocking(|| self.thread.join()).await.map_err(io::Error::other)?;
        joined.map_err(|_| io::Error::other("the demo's thread panicked; the message stands above"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::load::Pace;
    use std::net::Ipv4Addr;
    use std::num::NonZeroU32;
    use std::time::Duration;

    #[tokio::test]
    async fn backends_and_load_run_until_the_stage_closes() {
        let stage = Stage::open().unwrap();
        let backend = stage.backend("Backend-1", (Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let load = stage.load(LoadPlan {
            targets: vec![format!("http://{}", backend.address()).parse().unwrap()],
            pace: Pace::Closed,
            connections: NonZeroU32::MIN,
            keys: NonZeroU32::MIN,
            duration: Some(Duration::from_millis(20)),
            timeout: Duration::from_secs(5),
        });
        load.ended().await;
        assert!(backend.served() > 0);
        assert_eq!(load.report(false).answered, backend.served());
        stage.close().await.unwrap();
        assert!(std::net::TcpStream::connect(backend.address()).is_err());
    }

    #[tokio::test]
    async fn a_port_in_use_is_an_error() {
        let stage = Stage::open().unwrap();
        let first = stage.backend("Backend-1", (Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let second = stage.backend("Backend-2", first.address()).await;
        assert_eq!(second.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        stage.close().await.unwrap();
    }
}
