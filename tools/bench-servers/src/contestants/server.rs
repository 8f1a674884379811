//! A server in a process of its own.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Appended, Scan, Store, Work};
use crate::events::Sample;

/// Whether an executable can be started by its name.
pub(super) fn is_in_path(executable: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|path| path.join(executable).is_file()))
}

/// A server on loopback, which is killed when it is no longer used.
pub(super) struct Server {
    child: Child,
    pub(super) address: SocketAddr,
}

impl Server {
    /// Starts it with these arguments and a free address after them, and waits until it accepts connections. What it tells goes
    /// to a file in the directory of its store.
    pub(super) fn start<A: AsRef<OsStr>>(
        executable: &str,
        directory: &Path,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Self> {
        const PATIENCE: Duration = Duration::from_secs(30);
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let log = directory.join("log");
        let output = File::create(&log)?;
        let child = Command::new(executable)
            .args(arguments)
            .arg(address.to_string())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("{executable} cannot be started"))?;
        let mut server = Server { child, address };
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            let ended = server.child.try_wait()?;
            if ended.is_some() || began.elapsed() > PATIENCE {
                let told = fs::read_to_string(&log)?;
                bail!("{executable} does not listen at {address}; what it told: {}", told.trim());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client with the server that it is connected to. The client goes first.
pub(super) struct Served<S> {
    pub(super) client: Box<S>,
    pub(super) server: Server,
}

impl<S: Store> Store for Served<S> {
    fn append(&self, work: Work) -> Result<Appended> {
        self.client.append(work)
    }

    fn scan(&self, how: Scan) -> Result<u64> {
        self.client.scan(how)
    }

    fn load_aggregates(&self, aggregates: &[String]) -> Result<u64> {
        self.client.load_aggregates(aggregates)
    }

    fn get(&self, wanted: &Arc<[Sample]>) -> Result<()> {
        self.client.get(wanted)
    }

    fn close(self: Box<Self>) -> Result<()> {
        let Served { client, server } = *self;
        client.close()?;
        drop(server);
        Ok(())
    }
}
