//! The control API: HTTP and JSON on a Unix socket.
//!
//! ```text
//!   accept ──▶ routes ──▶ view ──▶ schema (the JSON, stable) ◀── client (the commands)
//!   slots,     who may    from the block layer's words to ours
//!   time       do what    limits, snapshot, time: both directions of throttles, metrics, timestamps
//! ```
//! Invariant: whoever uses it, and however slowly, the disks do not notice: nothing here blocks a thread of the
//! runtime, waits without a bound or takes a turn on a disk. Only a check of an export reads it, at most once a second
//! and as one more client.

mod accept;
mod checks;
pub mod client;
pub mod limits;
mod problem;
mod routes;
pub mod schema;
mod snapshot;
mod time;
mod view;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::UnixListener;
use tokio_util::task::AbortOnDropHandle;

use crate::disk::Disk;
use crate::listener::BoundPath;
use crate::manager::Manager;
use crate::server::Server;

/// A control socket that is served. Dropping it closes the socket and ends its connections.
#[derive(Debug)]
pub struct Control {
    _serving: AbortOnDropHandle<()>,
    _bound: Option<BoundPath>,
}

impl Control {
    /// Serves the API on a socket.
    pub fn serve(server: &Arc<Server>, listener: UnixListener, bound: Option<BoundPath>) -> Self {
        let routes = routes::routes(Arc::clone(server));
        let service = routes.into_make_service_with_connect_info::<accept::Peer>();
        let serving = axum::serve(accept::Accept::new(listener), service);
        let serving = tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the control socket is closed");
            }
        });
        Control { _serving: AbortOnDropHandle::new(serving), _bound: bound }
    }
}

/// Disks whose I/O engine does not answer within `patience`, by name.
pub async fn silent_disks(manager: &Manager, patience: Duration) -> Vec<String> {
    let answers = join_all(manager.disks().map(async |disk| (disk, answers(disk, patience).await))).await;
    answers.into_iter().filter(|(_, answers)| !answers).map(|(disk, _)| disk.plan.name.clone()).collect()
}

async fn answers(disk: &Disk, patience: Duration) -> bool {
    let chain = disk.chain();
    let all = join_all(chain.iter().map(|layer| layer.storage().ping()));
    tokio::time::timeout(patience, all).await.is_ok_and(|all| all.iter().all(Result::is_ok))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use disk_core::ByteRange;
    use disk_core::buf::{Buf, BufMut};
    use disk_core::format;
    use disk_core::storage::{Completer, Completion, HostExtent, Limits, MemStorage, Storage, Zero};
    use diskchain_config::DefaultSockets;

    use super::*;

    /// A storage whose engine never answers.
    #[derive(Debug)]
    struct Hung(MemStorage, std::sync::Mutex<Vec<Completer<()>>>);

    impl Storage for Hung {
        fn ping(&self) -> Completion<()> {
            let (completer, completion) = Completion::pending();
            self.1.lock().unwrap().push(completer);
            completion
        }
        fn limits(&self) -> Limits {
            self.0.limits()
        }
        fn name(&self) -> &str {
            self.0.name()
        }
        fn len(&self) -> u64 {
            self.0.len()
        }
        fn allocated(&self) -> u64 {
            self.0.allocated()
        }
        fn read(&self, at: u64, into: BufMut) -> Completion<BufMut> {
            self.0.read(at, into)
        }
        fn write(&self, at: u64, from: Buf) -> Completion<()> {
            self.0.write(at, from)
        }
        fn zero(&self, range: ByteRange, how: Zero) -> Completion<()> {
            self.0.zero(range, how)
        }
        fn discard(&self, range: ByteRange) -> Completion<()> {
            self.0.discard(range)
        }
        fn status(&self, range: ByteRange) -> Completion<HostExtent> {
            self.0.status(range)
        }
        fn prefetch(&self, range: ByteRange) {
            self.0.prefetch(range);
        }
        fn flush(&self) -> Completion<()> {
            self.0.flush()
        }
        fn resize(&self, len: u64) -> Completion<()> {
            self.0.resize(len)
        }
    }

    async fn disk(plan: &diskchain_config::plan::Disk, storage: Arc<dyn Storage>) -> Disk {
        let layer = format::find("raw").unwrap().open(storage, false).await.unwrap();
        let throttle = disk_core::throttle::Throttle::new(Default::default(), None);
        let files = vec![plan.top().file.clone()];
        Disk::new(plan.clone(), files, vec![layer], throttle.into(), Default::default(), Default::default())
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_whose_storage_does_not_answer_is_named_and_the_others_are_not() {
        let text = "[disk.well]\nfile = \"/well\"\n[disk.hung]\nfile = \"/hung\"\n";
        let sockets = DefaultSockets::system();
        let plan = diskchain_config::check(Path::new("/c.toml"), text.into(), &sockets).unwrap().plan;
        let hung = Hung(MemStorage::new(4096), Default::default());
        let disks = vec![
            disk(plan.disk("hung").unwrap(), Arc::new(hung)).await,
            disk(plan.disk("well").unwrap(), Arc::new(MemStorage::new(4096))).await,
        ];
        let manager = Manager::new(plan.server, disks, Default::default(), plan.exports);
        assert_eq!(silent_disks(&manager, Duration::from_secs(5)).await, ["hung"]);
    }
}
