//! `diskchain serve`: opens disks, listens, tells the service manager, and ends in good order.
//!
//! Invariant: nothing is served before every disk is open and has passed its self-test, and nothing at all from a
//! configuration with an error.

use std::io::{self, IsTerminal};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use disk_core::ErrorKind;
use diskchain_config::plan::{Format, Listen, LogFormat, LogLevel, Plan};
use diskchain_config::{DefaultSockets, Diagnostics, FilesToServe};
use futures_util::future::join_all;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::output::{fail, print};
use crate::control::{self, Control};
use crate::exit::Exit;
use crate::listener::{self, Listener};
use crate::manager::{Export, Manager};
use crate::sandbox::{self, Sandbox};
use crate::sd::Inherited;
use crate::server::Server;
use crate::{assemble, logging, sd, selftest};

/// Where the configuration is when nothing else is said.
pub const DEFAULT_CONFIG: &str = "/etc/diskchain/diskchain.toml";

/// Arguments of `diskchain serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Images to serve, each under its name without the extension; the first also under the empty name
    #[arg(conflicts_with = "config")]
    files: Vec<PathBuf>,
    /// Format of the images; a raw image that is to be written must be named so
    #[arg(long, requires = "files", value_parser = parse_format)]
    format: Option<Format>,
    /// Configuration file [default: /etc/diskchain/diskchain.toml]
    #[arg(long, env = "DISKCHAIN_CONFIG")]
    config: Option<PathBuf>,
    /// Address to listen on: unix:PATH or tcp:HOST:PORT; may be given several times
    #[arg(long, value_name = "URI", value_parser = parse_listen)]
    listen: Vec<Listen>,
    /// Allow plain TCP that is not on the loopback interface
    #[arg(long, requires = "files")]
    insecure: bool,
    /// Refuse all writes
    #[arg(long, requires = "files")]
    read_only: bool,
    /// Socket of the control API
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// Serve while this shell command runs ($uri, $unixsocket, $exportname) and end with its exit code
    #[arg(long, value_name = "COMMAND")]
    run: Option<String>,
    /// Do without the sandbox that a daemon with a configuration puts itself into
    #[arg(long)]
    no_sandbox: bool,
}

fn parse_format(word: &str) -> Result<Format, String> {
    Format::from_word(word).ok_or_else(|| format!("there are {}", Format::WORDS.join(" and ")))
}

pub(super) fn parse_listen(text: &str) -> Result<Listen, String> {
    let folder = std::env::current_dir().map_err(|error| format!("the current directory: {error}"))?;
    Listen::parse(text, &folder).map_err(|invalid| invalid.to_string())
}

/// What is to be served, and how the command treats its user.
pub struct Service {
    /// The plan.
    pub plan: Plan,
    /// Someone typed the files on a command line: everything is told on standard output, and a control socket that
    /// is in use is done without.
    pub by_hand: bool,
    /// A command to serve, and no longer than it runs.
    pub run: Option<String>,
    /// It is the demo, with its images in this folder.
    pub demo: Option<PathBuf>,
    /// The folder of a socket that nobody named; goes with this.
    pub folder: Option<TempDir>,
    /// The sockets that the service manager handed in.
    pub inherited: Inherited,
    /// What this process shut itself off from.
    pub sandbox: Sandbox,
}

/// What `diskchain serve` is to do. This comes before any thread is started, for two reasons: taking the sockets that
/// were handed in changes the environment, and a daemon that follows a configuration is in its sandbox from now on.
/// Whoever serves files by hand or a command wants to see them do more.
///
/// # Errors
/// Why nothing is served.
pub fn prepare(args: &ServeArgs) -> Result<Service, Exit> {
    let by_hand = !args.files.is_empty();
    let mut folder = None;
    if args.run.is_some() && args.listen.is_empty() && by_hand {
        match tempfile::Builder::new().prefix("diskchain-").tempdir() {
            Ok(made) => folder = Some(made),
            Err(error) => return Err(fail(Exit::Failed, format!("a folder for the socket: {error}"))),
        }
    }
    let sockets = match &folder {
        Some(folder) => DefaultSockets::under(folder.path()),
        None => default_sockets(),
    };
    let mut plan = match plan(args, &sockets) {
        Ok(plan) => plan,
        Err(diagnostics) => {
            eprint!("{}", diagnostics.render(std::io::stderr().is_terminal()));
            return Err(Exit::ConfigInvalid);
        }
    };
    if !by_hand && !args.listen.is_empty() {
        plan.server.listen.clone_from(&args.listen);
    }
    if let Some(control) = &args.control {
        match std::path::absolute(control) {
            Ok(path) => plan.server.control = Some(path),
            Err(error) => return Err(fail(Exit::Usage, format!("--control {}: {error}", control.display()))),
        }
    }
    let inherited =
        sd::take_listeners().map_err(|error| fail(Exit::Failed, format!("inherited sockets: {error}")))?;
    let sandboxed = !by_hand && args.run.is_none() && !args.no_sandbox;
    let sandbox = if sandboxed { enter_sandbox(&plan, &inherited) } else { Sandbox::Off };
    Ok(Service { plan, by_hand, run: args.run.clone(), demo: None, folder, inherited, sandbox })
}

/// Enters the sandbox, with a right to make only those sockets that were not handed in.
fn enter_sandbox(plan: &Plan, inherited: &Inherited) -> Sandbox {
    let mut plan = plan.clone();
    if !inherited.nbd.is_empty() {
        plan.server.listen.clear();
    }
    if !inherited.control.is_empty() {
        plan.server.control = None;
    }
    let control = plan.server.control.iter().map(|path| Listen::Unix(path.clone()));
    for address in plan.server.listen.iter().cloned().chain(control) {
        // What is wrong with it is told when it is bound.
        let _ = make_folder(&address);
    }
    sandbox::enter(&plan)
}

/// The sockets of a daemon that was not told any: the system's for root, otherwise the user's.
pub fn default_sockets() -> DefaultSockets {
    if rustix::process::geteuid().is_root() {
        return DefaultSockets::system();
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(folder) => DefaultSockets::under(Path::new(&folder)),
        None => DefaultSockets::under(&shared_place()),
    }
}

/// The user's folder where everybody may make folders.
fn shared_place() -> PathBuf {
    std::env::temp_dir().join(format!("diskchain-{}", rustix::process::geteuid().as_raw()))
}

fn plan(args: &ServeArgs, sockets: &DefaultSockets) -> Result<Plan, Diagnostics> {
    if args.files.is_empty() {
        let path = args.config.as_deref().unwrap_or(Path::new(DEFAULT_CONFIG));
        let checked = diskchain_config::load(path, sockets)?;
        if !checked.warnings.is_empty() {
            eprint!("{}", checked.warnings.render(std::io::stderr().is_terminal()));
        }
        return Ok(checked.plan);
    }
    let folder = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let serve = FilesToServe {
        files: &args.files,
        format: args.format,
        listen: &args.listen,
        insecure: args.insecure,
        read_only: args.read_only,
        folder: &folder,
    };
    Plan::from_files(&serve, sockets)
}

/// Serves until a signal or the end of the command.
pub async fn serve(service: Service) -> Exit {
    let Service { plan, by_hand, run, demo, folder: _folder, inherited, sandbox } = service;
    let format =
        if by_hand && plan.log.format == LogFormat::Auto { LogFormat::Pretty } else { plan.log.format };
    let level = if by_hand { LogLevel::Warn } else { plan.log.level };
    logging::start(level, format);
    match &sandbox {
        Sandbox::Off => {}
        Sandbox::Unavailable(_) => tracing::warn!("{sandbox}"),
        Sandbox::On | Sandbox::Partly => tracing::info!("{sandbox}"),
    }
    let started = start(plan, by_hand, inherited, &sandbox).await;
    let Started { server, listeners, control: _control } = match started {
        Ok(started) => started,
        Err(exit) => return exit,
    };
    // Before anybody is told how to stop it.
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => return fail(Exit::Failed, format!("signals cannot be received: {error}")),
    };
    let addresses: Vec<Listen> = listeners.iter().filter_map(Listener::address).collect();
    listeners.into_iter().for_each(|listener| server.listen(listener));
    let told = by_hand || std::io::stdout().is_terminal();
    if told && run.is_none() {
        print(&announcement(server.manager(), &addresses, demo.as_deref()));
    }
    let (disks, exports) = (server.manager().disks().count(), server.manager().exports().count());
    tracing::info!(disks, exports, "serving");
    let _ = server.manager().addresses.set(addresses.clone());
    server.manager().ready.store(true, Ordering::Relaxed);
    let status = format!("serving {exports} exports of {disks} disks");
    sd::ready(&status);
    let watchdog = tokio::spawn(watch(Arc::clone(&server), status));
    let exit = match run {
        Some(command) => captive(&server, &addresses, &command, &mut signals).await,
        None => {
            signals.any().await;
            Exit::Ok
        }
    };
    tracing::info!("stopping");
    server.manager().ready.store(false, Ordering::Relaxed);
    sd::stopping();
    sd::extend_timeout(server.manager().server().drain_timeout + Duration::from_secs(5));
    let well = server.stop().await;
    watchdog.abort();
    if well { exit } else { Exit::Failed }
}

/// A server that is ready for clients.
struct Started {
    server: Arc<Server>,
    listeners: Vec<Listener>,
    /// The control sockets, open until these are dropped.
    control: Vec<Control>,
}

/// Everything up to the moment when clients may come.
async fn start(plan: Plan, by_hand: bool, inherited: Inherited, sandbox: &Sandbox) -> Result<Started, Exit> {
    let (disks, groups) = match assemble::open_disks(&plan).await {
        Ok(opened) => opened,
        Err(errors) => {
            for error in &errors {
                if by_hand {
                    fail(Exit::Failed, error);
                } else {
                    // In the message, not in a field: the journal shows only messages.
                    tracing::error!("cannot open a disk: {error}");
                }
            }
            if sandbox.holds() && errors.iter().any(|error| error.kind() == ErrorKind::PermissionDenied) {
                tracing::error!("if the rights of the file allow it, the sandbox does not: see --no-sandbox");
            }
            return Err(assemble::exit(&errors));
        }
    };
    let inherited_nbd: Result<Vec<_>, _> = inherited.nbd.into_iter().map(Listener::try_from).collect();
    let mut listeners =
        inherited_nbd.map_err(|error| fail(Exit::Failed, format!("inherited sockets: {error}")))?;
    if listeners.is_empty() {
        for address in &plan.server.listen {
            let cannot = |exit, error| fail(exit, format!("cannot listen on {address}: {error}"));
            make_folder(address).map_err(|error| cannot(Exit::Failed, error))?;
            let listener = Listener::bind(address).await.map_err(|error| cannot(Exit::Busy, error))?;
            listeners.push(listener);
        }
    }
    let control_path = plan.server.control.clone();
    let manager = Arc::new(Manager::new(plan.server, disks, groups, plan.exports));
    let server = Server::new(Arc::clone(&manager));
    let control = listen_for_control(&server, inherited.control, control_path, by_hand).await?;
    let tests = join_all(manager.exports().map(|export| selftest::run(&server, &export.plan.name))).await;
    let failed: Vec<String> = tests.into_iter().filter_map(Result::err).collect();
    if !failed.is_empty() {
        for failure in failed {
            tracing::error!(error = failure, "self-test failed");
            fail(Exit::Failed, failure);
        }
        server.stop().await;
        return Err(Exit::Failed);
    }
    Ok(Started { server, listeners, control })
}

/// Serves the control API on the sockets that were handed in, or else on its own.
async fn listen_for_control(
    server: &Arc<Server>,
    inherited: Vec<StdUnixListener>,
    path: Option<PathBuf>,
    by_hand: bool,
) -> Result<Vec<Control>, Exit> {
    let mut control = Vec::new();
    for socket in inherited {
        let socket = UnixListener::from_std(socket)
            .map_err(|error| fail(Exit::Failed, format!("inherited sockets: {error}")))?;
        control.push(Control::serve(server, socket, None));
    }
    if let Some(path) = path.filter(|_| control.is_empty()) {
        let made = make_folder(&Listen::Unix(path.clone()));
        let bound = match made {
            Ok(()) => listener::bind_unix(&path, 0o660).await,
            Err(error) => Err(error),
        };
        match bound {
            Ok((socket, bound)) => control.push(Control::serve(server, socket, Some(bound))),
            Err(error) if by_hand => {
                tracing::info!(path = %path.display(), %error, "no control socket: --control names another");
            }
            Err(error) => {
                let path = path.display();
                return Err(fail(Exit::Busy, format!("cannot listen on control socket {path}: {error}")));
            }
        }
    }
    Ok(control)
}

/// Makes the folder of a user's own socket, which nobody else makes. One that cannot be made shows when binding fails.
///
/// # Errors
/// It lies where everybody may make folders, and somebody else was faster.
fn make_folder(address: &Listen) -> io::Result<()> {
    if let Listen::Unix(path) = address
        && let Some(folder) = path.parent()
        && folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("diskchain"))
    {
        use std::os::unix::fs::DirBuilderExt;
        let _ = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        let shared = shared_place();
        if folder.starts_with(&shared) {
            return expect_own(&shared, rustix::process::geteuid().as_raw());
        }
    }
    Ok(())
}

/// Refuses a folder that is not the user's own: its owner could put another socket into the place of ours.
fn expect_own(folder: &Path, user: u32) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let found = folder.symlink_metadata()?;
    if found.is_dir() && found.uid() == user {
        return Ok(());
    }
    let text = format!("{} is not yours: set XDG_RUNTIME_DIR, or name another socket", folder.display());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

/// What is served where, and what to type next.
fn announcement(manager: &Manager, addresses: &[Listen], demo: Option<&Path>) -> String {
    let mut text = String::new();
    let mut first = None;
    for export in manager.exports() {
        let uri = addresses.first().map(|address| listener::uri(address, &export.plan.name));
        let uri = uri.unwrap_or_else(|| "an inherited socket".into());
        let mode = if writable(export) { "read-write" } else { "read-only " };
        text += &format!("serving   {}   {mode}   {uri}\n", export.plan.name);
        first.get_or_insert(uri);
    }
    text += "self-test ok: a second NBD implementation read the first and last block\n";
    let first_export = manager.exports().next();
    if let (Some(uri), Some(export), Some(address)) = (first, first_export, addresses.first()) {
        text += &next_commands(&uri, &export.plan.name, address);
    }
    match demo {
        None => text + "Press Ctrl-C to stop.\n",
        Some(folder) => {
            text += &show_command(manager);
            text += &format!("Press Ctrl-C to stop; nothing outside {} was touched.\n", folder.display());
            text.lines().map(|line| format!("  {line}\n")).collect()
        }
    }
}

fn writable(export: &Export) -> bool {
    !export.plan.read_only && !export.disk.read_only()
}

/// Commands that a user may want to type now.
fn next_commands(uri: &str, export: &str, address: &Listen) -> String {
    let attach = match address {
        Listen::Unix(path) => format!("-unix {} -N {export}", path.display()),
        Listen::Tcp(host, port) => format!("{host} {port} -N {export}"),
    };
    format!(
        "Try:   qemu-system-x86_64 -drive 'file={uri},format=raw,if=virtio'\n       \
         sudo nbd-client {attach} /dev/nbd0\n       \
         nbdinfo '{uri}'\n"
    )
}

/// The command that shows the first disk, if its daemon can be asked.
fn show_command(manager: &Manager) -> String {
    let (Some(disk), Some(control)) = (manager.disks().next(), &manager.server().control) else {
        return String::new();
    };
    let named = if *control == default_sockets().control {
        String::new()
    } else {
        format!(" --control {}", control.display())
    };
    format!("       diskchain show {}{named}\n", disk.plan.name)
}

/// The signals that end the server.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on they no longer kill the process.
    fn new() -> io::Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for one of them.
    async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Runs a shell command while serving; ends with its exit code.
async fn captive(server: &Arc<Server>, addresses: &[Listen], command: &str, signals: &mut Signals) -> Exit {
    let manager = server.manager();
    let export = manager.server().default_export.clone().unwrap_or_default();
    let mut shell = tokio::process::Command::new("sh");
    shell.arg("-c").arg(command).env("exportname", &export).kill_on_drop(true);
    if let Some(address) = addresses.first() {
        shell.env("uri", listener::uri(address, &export));
        if let Listen::Unix(path) = address {
            shell.env("unixsocket", path);
        }
    }
    let mut child = match shell.spawn() {
        Ok(child) => child,
        Err(error) => return fail(Exit::Failed, format!("sh: {error}")),
    };
    tokio::select! {
        status = child.wait() => match status {
            Ok(status) => Exit::OfCommand(status.code().map_or(1, |code| code as u8)),
            Err(error) => fail(Exit::Failed, format!("sh: {error}")),
        },
        () = signals.any() => Exit::Failed,
    }
}

/// Feeds the service manager's watchdog, as long as the I/O engine of every disk answers.
async fn watch(server: Arc<Server>, status: String) {
    let mut hung = false;
    let Some(interval) = sd::watchdog_interval() else { return };
    let pause = interval / 3;
    loop {
        tokio::time::sleep(pause).await;
        let silent = control::silent_disks(server.manager(), pause).await;
        if silent.is_empty() {
            sd::ping();
            if std::mem::take(&mut hung) {
                sd::status(&status);
            }
        } else {
            let disks = silent.join(", ");
            tracing::error!("the watchdog is not fed: the storage of {disks} does not answer");
            sd::status(&format!("the storage of {disks} does not answer"));
            hung = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_for_sockets_that_somebody_else_made_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, link) = (dir.path().join("own"), dir.path().join("link"));
        std::fs::create_dir(&folder).unwrap();
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        let user = rustix::process::geteuid().as_raw();
        expect_own(&folder, user).expect("its own");
        for (folder, user) in [(&folder, user + 1), (&link, user)] {
            let refused = expect_own(folder, user).expect_err("somebody else's");
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        }
    }
}
