//! A disk of the daemon: its device, or for an ephemeral one the recipe for it.
//!
//! Invariant: at any time at most one device writes to a disk's images, and the overlay of an ephemeral disk exists
//! exactly as long as somebody is attached.

use std::ops::Deref;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use disk_core::Result;
use disk_core::chain::{Chain, ChainOptions};
use disk_core::condition::Condition;
use disk_core::device::{Device, DeviceOptions};
use disk_core::format::Layer;
use disk_core::throttle::Throttle;
use diskchain_config::plan;

use crate::overlay;

/// A disk that clients can attach to.
#[derive(Debug)]
pub struct Disk {
    /// What the configuration says of it.
    pub plan: plan::Disk,
    /// Its images, base first, as opened (parents that were searched included).
    pub files: Vec<PathBuf>,
    /// Its own limits and those of its group.
    pub throttle: Arc<Throttle>,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// Open from the start of the daemon to its end.
    Permanent(Arc<Device>),
    /// Made for the first client, forgotten with the last.
    Ephemeral(Ephemeral),
}

#[derive(Debug)]
struct Ephemeral {
    parents: Vec<Arc<dyn Layer>>,
    /// Where overlays take their space.
    directory: PathBuf,
    options: (ChainOptions, DeviceOptions),
    current: Mutex<Option<Current>>,
    /// Held while an overlay is made, so that two first clients get the same one.
    making: tokio::sync::Mutex<()>,
}

/// The device of an ephemeral disk as long as somebody is attached.
#[derive(Debug)]
struct Current {
    device: Arc<Device>,
    attached: usize,
}

/// A client's hold on a disk. The overlay of an ephemeral disk is forgotten when the last of them is dropped: whoever
/// attaches after that gets a new one, also while the old device is still looked at.
#[derive(Debug)]
pub struct Attached {
    disk: Arc<Disk>,
    device: Arc<Device>,
}

impl Disk {
    /// A disk over opened layers, base first.
    pub fn new(
        plan: plan::Disk,
        files: Vec<PathBuf>,
        layers: Vec<Arc<dyn Layer>>,
        throttle: Arc<Throttle>,
        chain: ChainOptions,
        device: DeviceOptions,
    ) -> Self {
        let source = if plan.ephemeral {
            let top = files.last().expect("a disk has an image");
            let directory = top.parent().unwrap_or(top).to_owned();
            Source::Ephemeral(Ephemeral {
                parents: layers,
                directory,
                options: (chain, device),
                current: Mutex::default(),
                making: tokio::sync::Mutex::default(),
            })
        } else {
            let chain = Chain::new(layers, chain);
            Source::Permanent(Arc::new(Device::new(plan.name.clone(), chain, throttle.clone(), device)))
        };
        Disk { plan, files, throttle, source }
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        match &self.source {
            Source::Permanent(device) => device.size(),
            Source::Ephemeral(ephemeral) => ephemeral.top().info().size,
        }
    }

    /// Whether all writes are refused.
    pub fn read_only(&self) -> bool {
        match &self.source {
            Source::Permanent(device) => device.read_only(),
            Source::Ephemeral(_) => false,
        }
    }

    /// Its images, base first, without the overlay of an ephemeral disk.
    pub fn layers(&self) -> &[Arc<dyn Layer>] {
        match &self.source {
            Source::Permanent(device) => device.chain().layers(),
            Source::Ephemeral(ephemeral) => &ephemeral.parents,
        }
    }

    /// Its images as they are used now, base first, with the overlay of an ephemeral disk last if there is one.
    pub fn chain(&self) -> Vec<Arc<dyn Layer>> {
        self.device().map_or_else(|| self.layers().to_vec(), |device| device.chain().layers().to_vec())
    }

    /// The device for a client that attaches.
    ///
    /// # Errors
    /// If an overlay cannot be made.
    pub async fn attach(self: &Arc<Self>) -> Result<Attached> {
        let device = match &self.source {
            Source::Permanent(device) => Arc::clone(device),
            Source::Ephemeral(ephemeral) => ephemeral.attach(&self.plan.name, &self.throttle).await?,
        };
        Ok(Attached { disk: Arc::clone(self), device })
    }

    /// The worst that happened to it since it was opened; an overlay that is gone takes what happened to it along.
    pub fn condition(&self) -> Condition {
        self.device().map_or(Condition::Sound, |device| device.condition())
    }

    /// The device if there is one now.
    pub fn device(&self) -> Option<Arc<Device>> {
        match &self.source {
            Source::Permanent(device) => Some(Arc::clone(device)),
            Source::Ephemeral(ephemeral) => ephemeral.current().as_ref().map(|it| Arc::clone(&it.device)),
        }
    }
}

impl Ephemeral {
    fn top(&self) -> &dyn Layer {
        &**self.parents.last().expect("a disk has an image")
    }

    fn current(&self) -> MutexGuard<'_, Option<Current>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn attach(&self, name: &str, throttle: &Arc<Throttle>) -> Result<Arc<Device>> {
        let _making = self.making.lock().await;
        if let Some(current) = &mut *self.current() {
            current.attached += 1;
            return Ok(Arc::clone(&current.device));
        }
        let overlay = overlay::create(&self.directory, self.top()).await?;
        let layers = self.parents.iter().cloned().chain([overlay]).collect();
        let (chain, options) = self.options;
        let chain = Chain::new(layers, chain);
        let device = Arc::new(Device::new(name.to_owned(), chain, throttle.clone(), options));
        *self.current() = Some(Current { device: Arc::clone(&device), attached: 1 });
        Ok(device)
    }

    fn detach(&self) {
        let mut current = self.current();
        if let Some(attached) = current.as_mut().map(|it| &mut it.attached) {
            *attached -= 1;
        }
        let ended = current.take_if(|it| it.attached == 0);
        // Its file is closed without the lock.
        drop(current);
        drop(ended);
    }
}

impl Deref for Attached {
    type Target = Arc<Device>;

    fn deref(&self) -> &Arc<Device> {
        &self.device
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Source::Ephemeral(ephemeral) = &self.disk.source {
            ephemeral.detach();
        }
    }
}
