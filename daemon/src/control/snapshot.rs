//! The daemon's numbers at one moment, for the metrics.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Mutex;

use super::view;
use crate::manager::Manager;
use crate::metrics::{self, Disk, Export, Process, Snapshot};

/// How long a file system has to say how much is free there. A file server may never.
const PATIENCE: Duration = Duration::from_secs(1);

/// Everything as OpenMetrics text. `None` if the daemon is stopping.
pub async fn render(manager: &Manager, folders: &Folders) -> Option<String> {
    let host_free = folders.free().await;
    let clients = manager.clients();
    let exports = manager.exports().map(|export| Export {
        name: export.plan.name.clone(),
        unix: view::connected(manager, &clients, &export.plan.name, "unix"),
        tcp: view::connected(manager, &clients, &export.plan.name, "tcp"),
        connected: export.connected.load(Ordering::Relaxed),
        refused: export.refused.load(Ordering::Relaxed),
    });
    let disks = manager.disks().map(|disk| {
        let chain = disk.chain();
        Disk {
            name: disk.plan.name.clone(),
            stats: view::accounts(disk),
            throttle: disk.throttle.status(),
            size: disk.size(),
            allocated: chain.iter().map(|layer| layer.storage().allocated()).sum(),
            layers: chain.len(),
            read_only: disk.read_only(),
            condition: disk.condition(),
        }
    });
    let mut snapshot = Snapshot {
        version: env!("CARGO_PKG_VERSION"),
        io_engine: view::io_engine(manager),
        disks: disks.collect(),
        exports: exports.collect(),
        handshake_failures: manager.handshake_failures().into_iter().collect(),
        host_free,
        process: None,
    };
    // `/proc` is read as files are, and the text of a thousand disks takes a while.
    let rendered = tokio::task::spawn_blocking(move || {
        snapshot.process = Process::read().ok();
        metrics::render(snapshot)
    });
    rendered.await.ok()
}

/// The folders that images are in.
#[derive(Debug)]
pub struct Folders(Vec<Folder>);

#[derive(Debug)]
struct Folder {
    path: PathBuf,
    /// Held by the thread that asks. A file system that does not answer is not asked again, or the threads that wait
    /// for it would become more and more.
    asking: Arc<Mutex<()>>,
}

impl Folders {
    /// Those of the images of all disks.
    pub fn of(manager: &Manager) -> Self {
        let files = manager.disks().flat_map(|disk| &disk.files);
        let mut seen = HashSet::new();
        let folders =
            files.filter_map(|file| file.parent()).filter(|folder| seen.insert(folder.to_path_buf()));
        let folder = |path: &Path| Folder { path: path.into(), asking: Arc::default() };
        Folders(folders.map(folder).collect())
    }

    /// Bytes that are free for this process in each; those that do not answer in time are left out.
    async fn free(&self) -> Vec<(String, u64)> {
        let free = join_all(self.0.iter().map(async |folder| {
            let free = tokio::time::timeout(PATIENCE, folder.free()).await.ok()??;
            Some((folder.path.display().to_string(), free))
        }));
        free.await.into_iter().flatten().collect()
    }
}

impl Folder {
    async fn free(&self) -> Option<u64> {
        let asking = Arc::clone(&self.asking).lock_owned().await;
        let path = self.path.clone();
        let asked = tokio::task::spawn_blocking(move || {
            let _asking = asking;
            rustix::fs::statvfs(&path)
        });
        let answer = asked.await.ok()?.ok()?;
        Some(answer.f_bavail.saturating_mul(answer.f_frsize))
    }
}
