//! `diskchain demo`: a small chain to try things on, made once and served.
//!
//! Invariant: everything it makes is in one folder of the user's own, and what is there already is never changed but
//! by the clients that it is served to.

mod fat;

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use disk_core::buf::Buf;
use disk_core::chain::{Chain, ChainOptions};
use disk_core::client::Client;
use disk_core::device::{Device, DeviceOptions};
use disk_core::format;
use disk_core::open::{LayerSpec, NewImage, OnRwFailure, OpenOptions, Parents, create_image, open_chain};
use disk_core::storage::{CacheMode, IoEngine};
use disk_core::throttle::{Limits, Throttle};
use disk_core::{Error, Result};
use diskchain_config::plan::{Format, Listen, Plan};
use diskchain_config::{DefaultSockets, FilesToServe};

use super::output::{fail, print};
use super::serve::{self, Service, parse_listen};
use crate::exit::Exit;
use crate::sandbox::Sandbox;
use crate::sd::Inherited;

const README: &str = "\
This is the demo disk of diskchain.\r
\r
It is a chain of two images. This file is in the base, demo-base.vdi, which\r
is never written. What you change goes to demo.vdi, a differencing image over\r
it: delete that file while the demo is not running, and all is as before.\r
\r
Look at the images:     diskchain image info demo.vdi --chain\r
Serve your own:         diskchain serve FILE.vdi\r
";

/// Arguments of `diskchain demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Address to listen on: unix:PATH or tcp:HOST:PORT [default: a socket of the user's own]
    #[arg(long, value_name = "URI", value_parser = parse_listen)]
    listen: Option<Listen>,
    /// Socket of the control API
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
}

/// Runs `diskchain demo`.
pub async fn run(args: DemoArgs) -> Exit {
    let Some(state) = state_folder() else {
        return fail(Exit::Failed, "where to put the demo's files? Neither XDG_STATE_HOME nor HOME is set");
    };
    let folder = state.join("diskchain");
    let sockets = sockets(&state);
    let address = args.listen.unwrap_or_else(|| Listen::Unix(sockets.nbd.clone()));
    if let Listen::Unix(path) = &address
        && UnixStream::connect(path).is_ok()
    {
        let path = path.display();
        return fail(
            Exit::Busy,
            format!("{path} is in use, perhaps by another demo: stop that, or say --listen unix:PATH"),
        );
    }
    if let Err(error) = DirBuilder::new().recursive(true).mode(0o700).create(&folder) {
        return fail(Exit::Failed, format!("{}: {error}", folder.display()));
    }
    let top = match prepare(&folder).await {
        Ok(top) => top,
        Err(error) => return fail(Exit::from(&error), error),
    };
    let files = FilesToServe {
        files: &[top],
        format: Some(Format::Vdi),
        listen: &[address],
        insecure: false,
        read_only: false,
        folder: &folder,
    };
    let mut plan = match Plan::from_files(&files, &sockets) {
        Ok(plan) => plan,
        Err(diagnostics) => {
            eprint!("{}", diagnostics.render(false));
            return Exit::Usage;
        }
    };
    if let Some(control) = args.control {
        match std::path::absolute(&control) {
            Ok(path) => plan.server.control = Some(path),
            Err(error) => return fail(Exit::Usage, format!("--control {}: {error}", control.display())),
        }
    }
    serve::serve(Service {
        plan,
        by_hand: true,
        run: None,
        demo: Some(folder),
        folder: None,
        inherited: Inherited::default(),
        sandbox: Sandbox::Off,
    })
    .await
}

/// Where the user's programs keep what they want to find again (XDG base directories), also for the super-user:
/// `/var/lib/diskchain` belongs to the system's daemon.
fn state_folder() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))
}

/// The user's own sockets; without a runtime directory they are beside the images.
fn sockets(state: &Path) -> DefaultSockets {
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_dir()) {
        Some(runtime) => DefaultSockets::under(&runtime),
        None => DefaultSockets::under(state),
    }
}

/// Makes the images that are missing. Returns the top.
async fn prepare(folder: &Path) -> Result<PathBuf> {
    let (base, top) = (folder.join("demo-base.vdi"), folder.join("demo.vdi"));
    let width = base.as_os_str().len();
    let tell = |what: &str, file: &Path, about: &str| {
        print(&format!("  {what:<7}   {:width$}   {about}\n", file.display()));
    };
    if top.exists() && !base.exists() {
        let text = format!(
            "{} is there, but not the image that it was made over: delete it to begin anew",
            top.display()
        );
        return Err(Error::new(disk_core::ErrorKind::NotFound, text));
    }
    let about = "256 MiB VDI, FAT file system with README.TXT";
    if base.exists() {
        tell("using", &base, about);
    } else {
        make_base(folder, &base).await?;
        tell("created", &base, about);
    }
    let about = "differencing image over it";
    if top.exists() {
        tell("using", &top, about);
    } else {
        let parent = LayerSpec::new(&base, Some(vdi()));
        create_image(&top, &NewImage::new(vdi(), None), Some(&parent), &[], IoEngine::Threads).await?;
        tell("created", &top, about);
    }
    Ok(top)
}

fn vdi() -> &'static dyn format::Format {
    format::find("vdi").expect("the VDI driver is built in")
}

/// Makes the base whole before it has its name, so that an interrupted demo leaves nothing half done.
async fn make_base(folder: &Path, base: &Path) -> Result<()> {
    let cannot = |error| Error::io(error, format!("cannot make {}", base.display()));
    let making = tempfile::Builder::new().prefix(".making-").tempdir_in(folder).map_err(cannot)?;
    let file = making.path().join("demo-base.vdi");
    create_image(&file, &NewImage::new(vdi(), Some(fat::SIZE)), None, &[], IoEngine::Threads).await?;
    let options = OpenOptions {
        read_only: false,
        lock: true,
        on_rw_failure: OnRwFailure::Fail,
        cache: CacheMode::Writeback,
        engine: IoEngine::Threads,
        image_dirs: Vec::new(),
        parents: Parents::None,
    };
    let chain = open_chain(vec![LayerSpec::new(&file, Some(vdi()))], options).await?;
    let layers = chain.layers.into_iter().map(|opened| opened.layer).collect();
    let chain = Chain::new(layers, ChainOptions::default());
    let throttle = Throttle::new(Limits::UNLIMITED, None);
    let device = Arc::new(Device::new("demo".into(), chain, throttle.into(), DeviceOptions::default()));
    let client = Client::new();
    let serial = uuid::Uuid::new_v4().as_fields().0;
    for (at, bytes) in fat::with_file(b"README  TXT", README.as_bytes(), serial) {
        device.write(&client, at, Buf::copy_from(&bytes), false).await?;
    }
    device.close().await?;
    drop(device);
    std::fs::rename(&file, base).map_err(cannot)
}
