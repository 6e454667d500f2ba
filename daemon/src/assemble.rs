//! From a plan to opened disks: the one place that speaks both the configuration's words and the block layer's.

use std::collections::BTreeMap;
use std::time::Duration;

use disk_core::chain::{ChainOptions, DetectZeroes};
use disk_core::device::DeviceOptions;
use disk_core::format::{self, Variant};
use disk_core::open::{LayerSpec, NewImage, OnRwFailure, OpenOptions, Parents, Search, open_chain};
use disk_core::storage::{CacheMode, IoEngine};
use disk_core::throttle::{Dimension, Group, Limits, Rate, Rates, Throttle};
use disk_core::{Error, Result};
use diskchain_config::plan::{self, Plan};
use futures_util::future::join_all;

use crate::disk::Disk;
use crate::exit::Exit;

/// The disks of a plan, and the throttle groups that they are members of.
pub type Opened = (Vec<Disk>, BTreeMap<String, Group>);

/// Opens every disk of a plan, all at once.
///
/// # Errors
/// One for each disk that cannot be opened; then none is.
pub async fn open_disks(plan: &Plan) -> Result<Opened, Vec<Error>> {
    let groups: BTreeMap<String, Group> =
        plan.groups.iter().map(|(name, throttle)| (name.clone(), Group::new(limits(throttle)))).collect();
    let opened = join_all(plan.disks.iter().map(|disk| open_disk(plan, disk, &groups))).await;
    let mut disks = Vec::new();
    let mut errors = Vec::new();
    for disk in opened {
        match disk {
            Ok(disk) => disks.push(disk),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok((disks, groups)) } else { Err(errors) }
}

async fn open_disk(plan: &Plan, disk: &plan::Disk, groups: &BTreeMap<String, Group>) -> Result<Disk> {
    let name = &disk.name;
    let specs = disk.layers.iter().map(layer_spec).collect();
    let chain = open_chain(specs, open_options(plan, disk))
        .await
        .map_err(|error| error.context(format_args!("disk {name}")))?;
    if let Some(error) = &chain.not_writable {
        tracing::warn!(diskchain.disk = %name, "disk {name} is opened read-only: it cannot be written: {error}");
    }
    if disk.locking == plan::Locking::Off && disk.writes_top() {
        tracing::warn!(diskchain.disk = %name, "the images of disk {name} are not locked: no other program may use them");
    }
    tracing::info!(diskchain.disk = %name, layers = chain.layers.len(), "opened disk {name}");
    let (layers, files) = chain.layers.into_iter().map(|opened| (opened.layer, opened.path)).unzip();
    let group = disk.group.as_deref().and_then(|group| groups.get(group));
    let throttle = Throttle::new(limits(&disk.throttle), group);
    let chain_options = ChainOptions {
        honor_zeroes: disk.honor_zeroes,
        honor_same: disk.honor_same,
        detect_zeroes: match disk.detect_zeroes {
            plan::DetectZeroes::Off => DetectZeroes::Off,
            plan::DetectZeroes::On => DetectZeroes::On,
            plan::DetectZeroes::Unmap => DetectZeroes::Unmap,
        },
    };
    let device_options = DeviceOptions {
        logical_block_size: disk.logical_block_size.into(),
        discard: disk.discard == plan::Discard::Unmap,
        slow_io: plan.log.slow_io.unwrap_or(Duration::ZERO),
    };
    Ok(Disk::new(disk.clone(), files, layers, throttle.into(), chain_options, device_options))
}

/// How the images of a disk are opened.
pub fn open_options(plan: &Plan, disk: &plan::Disk) -> OpenOptions {
    OpenOptions {
        read_only: !disk.writes_top(),
        lock: disk.locking == plan::Locking::On,
        on_rw_failure: match disk.on_rw_failure {
            plan::OnRwFailure::Fail => OnRwFailure::Fail,
            plan::OnRwFailure::Readonly => OnRwFailure::ReadOnly,
        },
        cache: match disk.cache {
            plan::CacheMode::Writeback => CacheMode::Writeback,
            plan::CacheMode::Writethrough => CacheMode::Writethrough,
            plan::CacheMode::None => CacheMode::None,
            plan::CacheMode::Directsync => CacheMode::Directsync,
            plan::CacheMode::Unsafe => CacheMode::Unsafe,
        },
        engine: match plan.server.io_engine {
            plan::IoEngine::Auto => IoEngine::Auto,
            plan::IoEngine::IoUring => IoEngine::IoUring,
            plan::IoEngine::Threads => IoEngine::Threads,
        },
        image_dirs: plan.server.image_dirs.clone(),
        parents: match disk.parents {
            plan::Parents::Listed => Parents::Listed,
            plan::Parents::Auto if plan.server.image_dirs.is_empty() => {
                Parents::Auto(Search::beside(&disk.top().file))
            }
            plan::Parents::Auto => Parents::Auto(Search::below(&plan.server.image_dirs)),
            plan::Parents::None => Parents::None,
        },
    }
}

/// An image of a chain, as the block layer wants to have it named.
pub fn layer_spec(layer: &plan::Layer) -> LayerSpec {
    let mut spec = LayerSpec::new(&layer.file, layer.format.map(driver));
    spec.create = layer.create.as_ref().map(|create| {
        let mut new = NewImage::new(driver(create.format), create.size);
        new.variant = Some(match create.variant {
            plan::Variant::Dynamic => Variant::Dynamic,
            plan::Variant::Fixed => Variant::Fixed,
            plan::Variant::Differencing => Variant::Differencing,
        });
        new
    });
    spec
}

fn driver(format: plan::Format) -> &'static dyn format::Format {
    format::find(format.word()).expect("the plan knows the formats that there are drivers for")
}

/// A plan's limits as the throttle takes them.
pub fn limits(throttle: &plan::Throttle) -> Limits {
    let mut rates = Rates::default();
    for (dimension, limit) in [
        (Dimension::IopsTotal, throttle.iops_total),
        (Dimension::IopsRead, throttle.iops_read),
        (Dimension::IopsWrite, throttle.iops_write),
        (Dimension::BpsTotal, throttle.bps_total),
        (Dimension::BpsRead, throttle.bps_read),
        (Dimension::BpsWrite, throttle.bps_write),
    ] {
        if let Some(limit) = limit {
            rates[dimension] = Rate {
                avg: limit.rate.get(),
                max: limit.burst.map_or(0, |burst| burst.rate.get()),
                max_length: limit.burst.map_or(Duration::ZERO, |burst| burst.length),
            };
        }
    }
    Limits::new(rates, throttle.iops_size.map_or(0, |size| size.get()))
        .expect("a plan's limits obey the rules of throttling")
}

/// How a command ends that could not open these disks: the first reason that says more than "failed".
pub fn exit(errors: &[Error]) -> Exit {
    errors.iter().map(Exit::from).find(|exit| *exit != Exit::Failed).unwrap_or(Exit::Failed)
}
