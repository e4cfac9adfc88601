//! Owns the demo's pool: a file with the YAML that a user would write, rewritten whenever a backend is
//! switched off or on. Guideway reads it like any other file, so the demo shows the real way.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::balance::pool::PoolId;

use super::load::KEY_HEADER;

/// The pool's name.
const NAME: &str = "demo";

/// The pool's file and which backends are in it.
#[derive(Debug)]
pub struct Switchboard {
    folder: PathBuf,
    port: u16,
    backends: Vec<(SocketAddr, bool)>,
}

impl Switchboard {
    /// Writes the pool with all backends into a new folder of this process.
    pub fn create(port: u16, backends: impl IntoIterator<Item = SocketAddr>) -> io::Result<Self> {
        let folder = std::env::temp_dir().join(format!("guideway-demo-{}-{port}", std::process::id()));
        std::fs::create_dir(&folder)?;
        let board = Self { folder, port, backends: backends.into_iter().map(|it| (it, true)).collect() };
        board.write()?;
        Ok(board)
    }

    /// The pool's file.
    pub fn file(&self) -> PathBuf {
        self.folder.join("pool.yaml")
    }

    /// The folder, which goes with the switchboard.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The pool's id.
    pub fn pool(&self) -> PoolId {
        PoolId::new("default", NAME)
    }

    /// Whether a backend is in the pool.
    pub fn is_on(&self, backend: usize) -> bool {
        self.backends[backend].1
    }

    /// Takes a backend out of the pool, or puts it back.
    pub fn switch(&mut self, backend: usize, on: bool) -> io::Result<()> {
        self.backends[backend].1 = on;
        self.write()
    }

    /// Written beside and renamed: the file source never sees half a pool.
    fn write(&self) -> io::Result<()> {
        let draft = self.folder.join("pool.yaml.new");
        std::fs::write(&draft, self.manifest())?;
        std::fs::rename(draft, self.file())
    }

    /// What a user would write.
    fn manifest(&self) -> String {
        let mut text = format!(
            "apiVersion: guideway.dev/v1alpha1\n\
             kind: LoadBalancerPool\n\
             metadata:\n  name: {NAME}\n\
             spec:\n  listeners:\n  - {{name: web, port: {}, protocol: HTTP}}\n  \
             algorithm:\n    hashOn: [{{type: Header, name: {KEY_HEADER}}}, {{type: ClientIP}}]\n  \
             backends:\n  - name: demo\n    endpoints:\n",
            self.port
        );
        for (backend, _) in self.backends.iter().filter(|(_, on)| *on) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "    - {{address: {}, port: {}}}", backend.ip(), backend.port());
        }
        text
    }
}

impl Drop for Switchboard {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crd::pool::LoadBalancerPool;
    use crate::source::translate;

    fn ports(board: &Switchboard) -> Vec<u16> {
        let text = std::fs::read_to_string(board.file()).unwrap();
        let resource: LoadBalancerPool = serde_yaml::from_str(&text).unwrap();
        translate::pool(&resource).unwrap();
        resource.spec.backends[0].endpoints.iter().flatten().map(|it| it.port).collect()
    }

    #[test]
    fn the_file_is_a_pool_of_the_backends_that_are_on() {
        let backends = [8081, 8082, 8083].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let mut board = Switchboard::create(0x7f01, backends).unwrap();
        let folder = board.folder().to_owned();
        assert_eq!(ports(&board), [8081, 8082, 8083]);
        board.switch(1, false).unwrap();
        assert_eq!((ports(&board), board.is_on(1)), (vec![8081, 8083], false));
        board.switch(1, true).unwrap();
        assert_eq!(ports(&board), [8081, 8082, 8083]);
        drop(board);
        assert!(!folder.exists());
    }
}
