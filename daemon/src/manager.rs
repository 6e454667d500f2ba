//! What the daemon serves: disks, exports and throttle groups by name, and the clients that are connected.
//!
//! Invariant: the sets of disks, exports and groups are fixed while the daemon runs; clients come and go.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Instant, SystemTime};

use disk_core::format::Space;
use disk_core::throttle::Group;
use diskchain_config::plan;
use nbd_wire::{Abilities, BlockSize, Context, Denial, ExportInfo, Exports};

use crate::disk::Disk;
use crate::handshake::Failure;
use crate::memory::Budget;

/// Smallest block that clients are told of for disks without a size of their own: like QEMU's and nbdkit's servers,
/// any byte range is served.
const ANY_BYTE: u32 = 1;

/// Largest preferred block: larger ones make clients read more than they need.
const PREFERRED_MAX: u64 = 1 << 20;

/// Everything that is served.
#[derive(Debug)]
pub struct Manager {
    server: plan::Server,
    disks: BTreeMap<String, Arc<Disk>>,
    groups: BTreeMap<String, Group>,
    exports: BTreeMap<String, Arc<Export>>,
    budget: Budget,
    clients: Mutex<BTreeMap<u64, ClientInfo>>,
    /// Where NBD clients can connect, once they can.
    pub addresses: OnceLock<Vec<plan::Listen>>,
    /// Since the start of the daemon.
    pub started: Instant,
    /// The same moment on the wall clock, for people.
    pub started_at: SystemTime,
    /// Connections that were accepted so far.
    pub accepted: AtomicU64,
    /// Handshakes that failed so far, by reason.
    handshake_failures: Mutex<BTreeMap<&'static str, u64>>,
    /// Clients are served: the start is over and the end has not begun.
    pub ready: AtomicBool,
}

/// A disk under a name that clients ask for.
#[derive(Debug)]
pub struct Export {
    /// What the configuration says of it.
    pub plan: plan::Export,
    /// The disk.
    pub disk: Arc<Disk>,
    connections: AtomicUsize,
    /// Connections so far.
    pub connected: AtomicU64,
    /// Connections that were refused so far because there were too many.
    pub refused: AtomicU64,
}

/// A connected client, as status shows it.
#[derive(Debug, Clone)]
pub struct ClientInfo {
    /// Number of the client, unique in this process; requests are listed under it.
    pub id: u64,
    /// Export that it chose.
    pub export: String,
    /// `unix` or `tcp`.
    pub transport: &'static str,
    /// Who it is.
    pub peer: String,
    /// When it connected.
    pub since: SystemTime,
}

impl Manager {
    /// The manager of opened disks, the groups that they may be members of, and the exports of a plan, whose disks must
    /// all be there.
    pub fn new(
        server: plan::Server,
        disks: Vec<Disk>,
        groups: BTreeMap<String, Group>,
        exports: Vec<plan::Export>,
    ) -> Self {
        let disks: BTreeMap<_, _> =
            disks.into_iter().map(|disk| (disk.plan.name.clone(), Arc::new(disk))).collect();
        let exports = exports
            .into_iter()
            .map(|plan| {
                let disk = Arc::clone(&disks[&plan.disk]);
                let export = Export {
                    plan,
                    disk,
                    connections: AtomicUsize::new(0),
                    connected: AtomicU64::new(0),
                    refused: AtomicU64::new(0),
                };
                (export.plan.name.clone(), Arc::new(export))
            })
            .collect();
        let budget = Budget::new(server.max_buffer_memory);
        Manager {
            server,
            disks,
            groups,
            exports,
            budget,
            clients: Mutex::default(),
            addresses: OnceLock::new(),
            started: Instant::now(),
            started_at: SystemTime::now(),
            accepted: AtomicU64::new(0),
            handshake_failures: Mutex::new(Failure::REASONS.map(|reason| (reason, 0)).into()),
            ready: AtomicBool::new(false),
        }
    }

    /// The `[server]` part of the configuration.
    pub fn server(&self) -> &plan::Server {
        &self.server
    }

    /// The disks, by name.
    pub fn disks(&self) -> impl Iterator<Item = &Arc<Disk>> {
        self.disks.values()
    }

    /// A disk by its name.
    pub fn disk(&self, name: &str) -> Option<&Arc<Disk>> {
        self.disks.get(name)
    }

    /// The throttle groups, by name.
    pub fn groups(&self) -> &BTreeMap<String, Group> {
        &self.groups
    }

    /// The exports, by name.
    pub fn exports(&self) -> impl Iterator<Item = &Arc<Export>> {
        self.exports.values()
    }

    /// An export by the name that a client gave; the empty name is the default.
    pub fn export(&self, name: &str) -> Option<&Arc<Export>> {
        match name {
            "" => self.exports.get(self.server.default_export.as_deref()?),
            name => self.exports.get(name),
        }
    }

    /// The bound on request buffers.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Counts a handshake that failed for one of [`Failure::REASONS`].
    pub fn count_failure(&self, reason: &'static str) {
        *self.failures().entry(reason).or_default() += 1;
    }

    /// Handshakes that failed so far, by reason.
    pub fn handshake_failures(&self) -> BTreeMap<&'static str, u64> {
        self.failures().clone()
    }

    /// The connected clients, oldest first.
    pub fn clients(&self) -> Vec<ClientInfo> {
        self.lock().values().cloned().collect()
    }

    /// Lists a client until the guard is dropped, if its export takes one more.
    pub fn enter<'a>(&'a self, export: &'a Export, client: ClientInfo) -> Option<Entered<'a>> {
        let most = export.plan.max_connections.map_or(usize::MAX, |most| most.get() as usize);
        let entered = export
            .connections
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| (now < most).then_some(now + 1));
        if entered.is_err() {
            export.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        export.connected.fetch_add(1, Ordering::Relaxed);
        let id = client.id;
        self.lock().insert(id, client);
        Some(Entered { manager: self, export, id })
    }

    fn failures(&self) -> MutexGuard<'_, BTreeMap<&'static str, u64>> {
        self.handshake_failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, ClientInfo>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Export {
    /// Clients connected to it now.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// A client that is listed.
#[derive(Debug)]
pub struct Entered<'a> {
    manager: &'a Manager,
    export: &'a Export,
    id: u64,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.export.connections.fetch_sub(1, Ordering::Relaxed);
        self.manager.lock().remove(&self.id);
    }
}

impl Exports for Manager {
    fn list(&self) -> Option<Vec<(String, String)>> {
        let named = |export: &Arc<Export>| (export.plan.name.clone(), export.plan.description.clone());
        self.server.list_exports.then(|| self.exports.values().map(named).collect())
    }

    fn find(&self, name: &str) -> Result<ExportInfo, Denial> {
        let export = self.export(name).ok_or(Denial::Unknown)?;
        if let Some(most) = export.plan.max_connections
            && export.connections() >= most.get() as usize
        {
            export.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Denial::Policy(format!("{most} clients are connected, as many as are allowed")));
        }
        let disk = &export.disk;
        let top = disk.layers().last().expect("a disk has an image");
        let preferred = top.info().block_size.clamp(4096, PREFERRED_MAX) as u32;
        let minimum = match disk.plan.logical_block_size {
            512 => ANY_BYTE,
            larger => larger,
        };
        Ok(ExportInfo {
            name: export.plan.name.clone(),
            description: export.plan.description.clone(),
            size: disk.size(),
            abilities: Abilities {
                read_only: export.plan.read_only || disk.read_only(),
                trim: disk.plan.discard == plan::Discard::Unmap && top.info().space != Space::Preallocated,
                fast_zero: true,
                multi_conn: export.plan.multi_conn,
            },
            block_size: BlockSize { minimum, preferred, maximum: self.server.max_request_size },
            contexts: vec![Context::Allocation, Context::AllocationDepth],
        })
    }
}
