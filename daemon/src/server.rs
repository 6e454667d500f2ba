//! The running server: connections, the tasks around them, and the way it ends.
//!
//! ```text
//!   stopping ─▶ no more connections; requests in flight are finished and answered, new ones left unread
//!   cutting  ─▶ whoever still holds on is cut off
//!   close    ─▶ images are put in order and flushed
//! ```
//! Invariant: the end comes within a bound whatever clients and storage do, and no image is closed while a request of
//! its disk is under way.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use disk_core::client::Client;
use futures_util::future::join_all;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::connection::{Connection, End, Terms};
use crate::handshake::{self, Failure};
use crate::listener::Listener;
use crate::manager::{ClientInfo, Manager};
use crate::memory::Allowance;
use crate::socket::Socket;
use crate::stop::Stop;

/// How long connections that were cut off have to notice.
const CUT_GRACE: Duration = Duration::from_secs(1);

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// Somebody whose coming and going is in the log.
    Client,
    /// This process, as often as it is asked whether it is well: no news unless it fails.
    SelfTest,
}

/// A server over a manager's disks.
#[derive(Debug)]
pub struct Server {
    manager: Arc<Manager>,
    stop: Stop,
    /// Those that take connections. Their sockets' files go with them.
    listeners: TaskTracker,
    /// Connections.
    tasks: TaskTracker,
}

impl Server {
    /// A server that has no listener yet. Compaction of its disks begins.
    pub fn new(manager: Arc<Manager>) -> Arc<Self> {
        for disk in manager.disks().filter(|disk| !disk.plan.ephemeral) {
            if let Some(device) = disk.device() {
                tokio::spawn(device.keep_compact());
            }
        }
        Arc::new(Server {
            manager,
            stop: Stop::default(),
            listeners: TaskTracker::new(),
            tasks: TaskTracker::new(),
        })
    }

    /// What it serves.
    pub fn manager(&self) -> &Arc<Manager> {
        &self.manager
    }

    /// Takes connections from a listener until the server stops.
    pub fn listen(self: &Arc<Self>, listener: Listener) {
        let server = Arc::clone(self);
        self.listeners.spawn(async move {
            let most = server.manager.server().max_connections.get() as usize;
            loop {
                tokio::select! {
                    () = server.stop.stopping() => return,
                    socket = listener.accept() => {
                        if server.tasks.len() >= most {
                            tracing::warn!(peer = socket.peer(), "refused: {most} clients are connected");
                            continue;
                        }
                        server.adopt(socket, Caller::Client);
                    }
                }
            }
        });
    }

    /// Serves a connected client in a task of its own.
    pub fn adopt(self: &Arc<Self>, socket: Socket, caller: Caller) {
        let server = Arc::clone(self);
        self.manager.accepted.fetch_add(1, Ordering::Relaxed);
        self.tasks.spawn(async move { server.converse(socket, caller).await });
    }

    async fn converse(&self, socket: Socket, caller: Caller) {
        let peer = socket.peer();
        let most = self.manager.server().handshake_timeout;
        let negotiated = tokio::select! {
            negotiated = handshake::negotiate(&socket, &*self.manager, most) => negotiated,
            () = self.stop.stopping() => return,
        };
        let (session, leftover) = match negotiated {
            Ok(agreed) => agreed,
            Err(Failure::Aborted) => return tracing::debug!(peer, "the client left without an export"),
            Err(failure) => {
                self.manager.count_failure(failure.reason());
                return tracing::info!(peer, reason = failure.reason(), error = %failure, "handshake failed");
            }
        };
        let Some(export) = self.manager.export(session.export()).cloned() else { return };
        let attached = match export.disk.attach().await {
            Ok(attached) => attached,
            Err(error) => {
                return tracing::error!(diskchain.export = session.export(), %error, "cannot attach a client");
            }
        };
        let client = Client::new();
        let info = ClientInfo {
            id: client.id(),
            export: session.export().to_owned(),
            transport: socket.transport(),
            peer: peer.clone(),
            since: SystemTime::now(),
        };
        // The self-test too: whoever has an ephemeral disk goes by the list when its overlay ends.
        let Some(_entered) = self.manager.enter(&export, info) else {
            return tracing::warn!(diskchain.export = session.export(), peer, "refused: too many clients");
        };
        let id = client.id();
        let name = session.export();
        match caller {
            Caller::Client => {
                tracing::info!(diskchain.export = name, diskchain.client = id, peer, "connected");
            }
            Caller::SelfTest => tracing::debug!(diskchain.export = name, diskchain.client = id, "self-test"),
        }
        let allowance = Allowance::new(self.manager.budget().clone());
        let terms = Terms {
            most_in_flight: export.disk.plan.max_in_flight.get() as usize,
            busy_poll: self.manager.server().busy_poll,
        };
        let device = Arc::clone(&attached);
        let connection = Connection::new(socket, session, &leftover, device, client, allowance, terms);
        let (end, socket) = connection.serve(&self.stop).await;
        // In this order: who sees the last connection end, or the list without it, gets a new overlay.
        drop(attached);
        drop(socket);
        log_end(&export.plan.name, id, caller, &end);
    }

    /// Ends everything: connections first, then disks. Returns whether all of it went well.
    pub async fn stop(&self) -> bool {
        let until = Instant::now() + self.manager.server().drain_timeout;
        self.stop.stop();
        self.listeners.close();
        self.tasks.close();
        let _ = tokio::time::timeout_at(until, self.listeners.wait()).await;
        if tokio::time::timeout_at(until, self.tasks.wait()).await.is_err() {
            tracing::warn!(left = self.tasks.len(), "clients are cut off: the drain time-out is over");
            self.stop.cut();
            let _ = tokio::time::timeout(CUT_GRACE, self.tasks.wait()).await;
        }
        let until = until.max(Instant::now() + CUT_GRACE);
        let closed = join_all(self.manager.disks().filter_map(|disk| disk.device()).map(async |device| {
            match tokio::time::timeout_at(until, device.close()).await {
                Ok(Ok(())) => true,
                Ok(Err(error)) => {
                    tracing::error!(diskchain.disk = device.name(), %error, "not closed cleanly");
                    false
                }
                Err(_) => {
                    let left = device.requests().len();
                    tracing::error!(
                        diskchain.disk = device.name(),
                        left,
                        "not closed: its storage does not answer"
                    );
                    false
                }
            }
        }))
        .await;
        closed.into_iter().all(|well| well)
    }
}

fn log_end(export: &str, client: u64, caller: Caller, end: &End) {
    match end {
        End::Disconnected if caller == Caller::SelfTest => {
            tracing::debug!(diskchain.export = export, diskchain.client = client, "self-test done");
        }
        End::Disconnected | End::Stopped => {
            tracing::info!(diskchain.export = export, diskchain.client = client, "disconnected");
        }
        End::Gone(error) => {
            tracing::info!(diskchain.export = export, diskchain.client = client, %error, "gone without goodbye");
        }
        End::Violation(violation) => {
            let error = violation.to_string();
            tracing::warn!(diskchain.export = export, diskchain.client = client, error, "dropped");
        }
        End::Stalled => {
            let error = "it was too slow while others waited for the memory it held";
            tracing::warn!(diskchain.export = export, diskchain.client = client, error, "dropped");
        }
    }
}
