//! From what the daemon and its block layer know to what the API says of it.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use disk_core::op::Op;
use disk_core::stats::{DiskStats, OpStats};
use disk_core::throttle::Dimension;
use disk_core::tracker::RequestInfo;

use super::schema::{
    BufferMemory, Client, Connections, Disk, DiskSummary, Export, Group, Image, Latency, Operation, Options,
    Request, Status, Throttle, Time, Version,
};
use super::{schema, time};
use crate::disk;
use crate::errno::errno;
use crate::manager::{ClientInfo, Manager};

/// The program.
pub fn version() -> Version {
    Version { version: env!("CARGO_PKG_VERSION").into(), api: "v1".into() }
}

/// The daemon as a whole.
pub fn status(manager: &Manager) -> Status {
    let failures = manager.handshake_failures();
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        started: time::rfc3339(manager.started_at),
        uptime: manager.started.elapsed().as_secs_f64(),
        ready: manager.ready.load(Ordering::Relaxed),
        listen: manager.addresses.get().into_iter().flatten().map(ToString::to_string).collect(),
        io_engine: io_engine(manager).into(),
        disks: manager.disks().count(),
        exports: manager.exports().count(),
        clients: manager.clients().len(),
        connections_accepted: manager.accepted.load(Ordering::Relaxed),
        handshake_failures: failures.into_iter().map(|(reason, count)| (reason.into(), count)).collect(),
        in_flight: manager.disks().map(|disk| accounts(disk).in_flight).sum(),
        buffer_memory: BufferMemory {
            used: manager.budget().used(),
            limit: manager.server().max_buffer_memory,
        },
    }
}

/// The I/O engine of the daemon: that of its disks, which have all the same.
pub fn io_engine(manager: &Manager) -> &'static str {
    let first = manager.disks().flat_map(|disk| disk.layers()).next();
    first.map_or("none", |layer| layer.storage().engine())
}

/// The disks, by name.
pub fn disks(manager: &Manager) -> Vec<DiskSummary> {
    let clients = manager.clients();
    manager
        .disks()
        .map(|disk| {
            let chain = disk.chain();
            let plan = &disk.plan;
            DiskSummary {
                name: plan.name.clone(),
                uuid: plan.uuid,
                description: plan.description.clone(),
                size: disk.size(),
                read_only: disk.read_only(),
                ephemeral: plan.ephemeral,
                condition: disk.condition().name().into(),
                layers: chain.len(),
                allocated: chain.iter().map(|layer| layer.storage().allocated()).sum(),
                connections: clients.iter().filter(|client| is_of(manager, client, disk)).count(),
                in_flight: accounts(disk).in_flight,
            }
        })
        .collect()
}

/// One disk, with everything.
pub fn disk(manager: &Manager, disk: &disk::Disk) -> Disk {
    let plan = &disk.plan;
    let exports = manager.exports().filter(|export| export.plan.disk == plan.name);
    Disk {
        name: plan.name.clone(),
        uuid: plan.uuid,
        description: plan.description.clone(),
        size: disk.size(),
        read_only: disk.read_only(),
        ephemeral: plan.ephemeral,
        condition: disk.condition().name().into(),
        chain: chain(disk),
        options: Options {
            cache: plan.cache.to_string(),
            discard: plan.discard.to_string(),
            detect_zeroes: plan.detect_zeroes.to_string(),
            honor_zeroes: plan.honor_zeroes,
            honor_same: plan.honor_same,
            logical_block_size: plan.logical_block_size,
            max_in_flight: plan.max_in_flight.get(),
        },
        exports: exports.map(|export| export.plan.name.clone()).collect(),
        stats: stats(disk),
        requests: requests(disk),
        clients: clients(manager).into_iter().filter(|client| client.disk == plan.name).collect(),
        throttle: throttle(disk),
    }
}

/// The images of a disk, base first.
pub fn chain(disk: &disk::Disk) -> Vec<Image> {
    let chain = disk.chain();
    chain
        .iter()
        .enumerate()
        .map(|(index, layer)| {
            let (info, storage) = (layer.info(), layer.storage());
            Image {
                file: disk.files.get(index).map(|file| file.display().to_string()),
                format: info.format.into(),
                variant: info.variant.into(),
                size: info.size,
                block_size: info.block_size,
                file_size: storage.len(),
                allocated: storage.allocated(),
                read_only: info.read_only,
                uuid: info.uuid,
                modification_uuid: info.modification_uuid,
                parent_uuid: info.parent_uuid,
                parent_modification_uuid: info.parent_modification_uuid,
            }
        })
        .collect()
}

/// The accounts of a disk. Those of an ephemeral one begin anew with its first client.
pub fn accounts(disk: &disk::Disk) -> DiskStats {
    disk.device().map_or_else(DiskStats::default, |device| device.stats())
}

/// What a disk has done.
pub fn stats(disk: &disk::Disk) -> schema::Stats {
    let stats = accounts(disk);
    schema::Stats {
        in_flight: stats.in_flight,
        busy: seconds(stats.busy),
        weighted: seconds(stats.weighted()),
        highest_written: stats.highest_written,
        copied: stats.copied,
        zeroes: stats.zeroes,
        same: stats.same,
        operations: Op::ALL.map(|op| (op.name().into(), operation(&stats, op))).into(),
    }
}

fn operation(all: &DiskStats, op: Op) -> Operation {
    let stats = all.of(op);
    let mut errors = BTreeMap::new();
    for error in all.errors.iter().filter(|error| error.op == op) {
        *errors.entry(format!("{:?}", errno(error.kind))).or_insert(0) += error.count;
    }
    Operation {
        completed: stats.operations,
        bytes: stats.bytes,
        failed: errors.values().sum(),
        errors,
        time: Time {
            total: seconds(stats.total + stats.failed),
            throttle: seconds(stats.throttled),
            overlap: seconds(stats.waited),
            working: seconds(stats.working()),
        },
        latency: latency(stats),
    }
}

fn latency(stats: &OpStats) -> Option<Latency> {
    let quantile = |quantile| {
        let (above, up_to) = stats.latency.quantile(quantile)?;
        // The last bucket has no upper bound that means anything.
        Some(seconds(if up_to.as_nanos() == u128::from(u64::MAX) { above } else { up_to }))
    };
    Some(Latency { p50: quantile(0.5)?, p90: quantile(0.9)?, p99: quantile(0.99)?, p999: quantile(0.999)? })
}

/// The requests of a disk that are in flight, oldest first.
pub fn requests(disk: &disk::Disk) -> Vec<Request> {
    let request = |info: RequestInfo| Request {
        id: info.id,
        op: info.op.name().into(),
        offset: info.range.start(),
        length: info.range.len(),
        client: info.client,
        age: seconds(info.age),
        stage: info.stage.name().into(),
        waiting_for: info.waiting_for,
    };
    disk.device().map_or_else(Vec::new, |device| device.requests().into_iter().map(request).collect())
}

/// The clients, oldest first.
pub fn clients(manager: &Manager) -> Vec<Client> {
    // Once a disk: its list of requests is made under the lock that requests take.
    let requests: BTreeMap<&str, Vec<RequestInfo>> = manager
        .disks()
        .filter_map(|disk| Some((disk.plan.name.as_str(), disk.device()?.requests())))
        .collect();
    let clients = manager.clients().into_iter();
    clients
        .map(|client| {
            let disk = disk_of(manager, &client).unwrap_or_default();
            let theirs =
                requests.get(disk).into_iter().flatten().filter(|request| request.client == client.id);
            Client {
                id: client.id,
                disk: disk.into(),
                transport: client.transport.into(),
                peer: client.peer,
                since: time::rfc3339(client.since),
                in_flight: theirs.count(),
                export: client.export,
            }
        })
        .collect()
}

fn disk_of<'a>(manager: &'a Manager, client: &ClientInfo) -> Option<&'a str> {
    manager.export(&client.export).map(|export| export.plan.disk.as_str())
}

fn is_of(manager: &Manager, client: &ClientInfo, disk: &disk::Disk) -> bool {
    disk_of(manager, client) == Some(&disk.plan.name)
}

/// The exports, by name.
pub fn exports(manager: &Manager) -> Vec<Export> {
    let default = manager.server().default_export.as_deref();
    let clients = manager.clients();
    manager
        .exports()
        .map(|export| {
            let plan = &export.plan;
            Export {
                name: plan.name.clone(),
                disk: plan.disk.clone(),
                description: plan.description.clone(),
                default: default == Some(&plan.name),
                size: export.disk.size(),
                read_only: plan.read_only || export.disk.read_only(),
                multi_conn: plan.multi_conn,
                connections: Connections {
                    unix: connected(manager, &clients, &plan.name, "unix"),
                    tcp: connected(manager, &clients, &plan.name, "tcp"),
                    max: plan.max_connections.map(|most| most.get()),
                    total: export.connected.load(Ordering::Relaxed),
                    refused: export.refused.load(Ordering::Relaxed),
                },
            }
        })
        .collect()
}

/// How many of `clients` use an export over a transport.
pub fn connected(manager: &Manager, clients: &[ClientInfo], export: &str, transport: &str) -> u64 {
    let uses = |client: &&ClientInfo| {
        let name = manager.export(&client.export).map(|export| export.plan.name.as_str());
        client.transport == transport && name == Some(export)
    };
    clients.iter().filter(uses).count() as u64
}

/// The limits of a disk, and what they do.
pub fn throttle(disk: &disk::Disk) -> Throttle {
    let status = disk.throttle.status();
    let waited =
        |dimension: Dimension| (dimension.name().to_owned(), seconds(status.waited[dimension as usize]));
    Throttle {
        limits: status.limits.into(),
        group: disk.plan.group.clone(),
        waiting: status.waiting,
        waited: Dimension::ALL.map(waited).into(),
    }
}

/// The throttle groups, by name.
pub fn groups(manager: &Manager) -> Vec<Group> {
    manager.groups().keys().map(|name| group(manager, name)).collect()
}

/// A throttle group, by its name, which must be there.
pub fn group(manager: &Manager, name: &str) -> Group {
    let group = &manager.groups()[name];
    let members = manager.disks().filter(|disk| disk.plan.group.as_deref() == Some(name));
    Group {
        name: name.into(),
        limits: group.limits().into(),
        waiting: group.waiting(),
        members: members.map(|disk| disk.plan.name.clone()).collect(),
    }
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}
