//! The daemon and its units under systemd, at three heights: the units read by systemd's own checkers,
//! the daemon under a service manager played by the test, and the whole under a real systemd as PID 1
//! of a throw-away machine.

use std::fs;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use diskchain_tests::client::Client;
use diskchain_tests::machine::Machine;
use diskchain_tests::project_root;
use diskchain_tests::server::diskchain_binary;
use diskchain_tests::tool::{Ended, Tool, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const SERVICES: [&str; 2] = ["diskchain.service", "diskchain@lab.service"];
const SOCKETS: [&str; 4] =
    ["diskchain.socket", "diskchain-control.socket", "diskchain@lab.socket", "diskchain-control@lab.socket"];

// ---- Units, read by systemd's own checkers ----

#[test]
fn every_unit_passes_systemd_analyze_verify() {
    let machine = Machine::installed();
    let ended = verify(machine.root());
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended}");

    // The gate is closed to a misspelt key.
    let service = machine.root().join("usr/lib/systemd/system/diskchain.service");
    let text = fs::read_to_string(&service).unwrap();
    fs::write(&service, text.replace("WatchdogSec=", "WatchdogSecs=")).unwrap();
    assert!(!verify(machine.root()).status.success());
}

#[test]
fn every_drop_in_passes_verify_where_its_comment_says_it_goes() {
    let mut seen = 0;
    for entry in fs::read_dir(project_root().join("systemd/drop-ins")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let place =
            text.lines().find_map(|line| line.strip_prefix("#   /")).expect("a drop-in says where it goes");
        assert_eq!(Path::new(place).file_name(), path.file_name());
        let machine = Machine::installed();
        machine.write(place, &text);
        let ended = verify(machine.root());
        assert!(ended.status.success() && ended.stderr.is_empty(), "{}: {ended}", path.display());
        // systemd would ignore a drop-in of a unit that does not exist.
        let unit = place.split('/').nth_back(1).unwrap().strip_suffix(".d").unwrap();
        assert!(machine.root().join("usr/lib/systemd/system").join(unit).exists(), "{place}");
        seen += 1;
    }
    assert_eq!(seen, 4);
}

#[test]
fn the_services_are_exposed_no_more_than_1_2() {
    let machine = Machine::installed();
    for service in SERVICES {
        let ended = exposure(machine.root(), service, 12).run();
        assert!(ended.text().contains("Overall exposure level"), "{ended}");
    }
    // The gate is closed to a lower bound than holds, and the network is what is left.
    exposure(machine.root(), "diskchain.service", 9).run_refused();
    let unix_only = project_root().join("systemd/drop-ins/unix-only.conf");
    let unix_only = fs::read_to_string(unix_only).unwrap();
    machine.write("/etc/systemd/system/diskchain.service.d/unix-only.conf", &unix_only);
    exposure(machine.root(), "diskchain.service", 2).run();
}

#[test]
fn the_template_differs_from_the_service_only_in_the_instances_name() {
    let units = project_root().join("systemd");
    for (plain, template) in [
        ("diskchain.service", "diskchain@.service"),
        ("diskchain.socket", "diskchain@.socket"),
        ("diskchain-control.socket", "diskchain-control@.socket"),
    ] {
        let settings = |name: &str| -> Vec<String> {
            let text = fs::read_to_string(units.join(name)).unwrap();
            let settings =
                text.lines().filter(|line| !line.starts_with('#') && *line != "DefaultInstance=main");
            settings.map(str::to_owned).collect()
        };
        let nameless: Vec<String> = settings(template)
            .iter()
            .map(|line| match line.as_str() {
                "StateDirectory=diskchain-%i diskchain-%i/images" => "StateDirectory=diskchain".to_owned(),
                line => {
                    let line = line.replace("/%i.toml", "/diskchain.toml").replace(", instance %i", "");
                    line.replace("@%i", "").replace("diskchain-%i", "diskchain")
                }
            })
            .collect();
        assert_eq!(nameless, settings(plain), "{template}");
    }
}

#[test]
fn sysusers_and_tmpfiles_make_the_user_and_its_folders() {
    let machine = Machine::installed();
    let at_root = format!("--root={}", machine.root().display());
    Tool::new("systemd-sysusers").arg(&at_root).arg("diskchain.conf").run();
    let users = fs::read_to_string(machine.root().join("etc/passwd")).unwrap();
    assert!(
        users.lines().any(|line| line.starts_with("diskchain:x:") && line.ends_with("/nologin")),
        "{users}"
    );
    Tool::new("systemd-tmpfiles").args([&at_root, "--create", "diskchain.conf"]).run();
    for (folder, mode) in
        [("var/lib/diskchain", "750"), ("var/lib/diskchain/images", "750"), ("etc/diskchain", "755")]
    {
        let stat = Tool::new("stat").args(["-c", "%a"]).arg(machine.root().join(folder)).run();
        assert_eq!(stat.text().trim(), mode, "{folder}");
    }
}

fn verify(root: &Path) -> Ended {
    let at_root = format!("--root={}", root.display());
    let tool = Tool::new("systemd-analyze").args(["verify", "--man=no", "--recursive-errors=no", &at_root]);
    tool.args(SERVICES).args(SOCKETS).run_any()
}

/// `threshold` is ten times the largest exposure that passes.
fn exposure(root: &Path, service: &str, threshold: u32) -> Tool {
    Tool::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager"])
        .arg(format!("--threshold={threshold}"))
        .arg(format!("--root={}", root.display()))
        .arg(service)
}

// ---- The daemon under a service manager played by the test ----

#[test]
fn the_daemon_reports_ready_after_its_disks_are_open_and_stopping_before_it_ends() {
    let manager = Manager::new();
    let image = manager.image("vm1.vdi");
    let mut daemon = manager.start(&[]);
    let before_ready = daemon.states_until("READY=1");
    // The lock is the proof that the image was open by then.
    let refusal = Tool::new("qemu-io").args(["-f", "vdi", "-c", "read 0 512"]).arg(&image).run_refused();
    assert!(refusal.stderr.contains("lock"), "{refusal}");
    assert!(!before_ready.iter().any(|state| state == "STOPPING=1"), "{before_ready:?}");
    Client::connect(&manager.nbd, "vm1").expect("what is ready serves");

    daemon.signal(Signal::TERM);
    daemon.states_until("STOPPING=1");
    assert!(daemon.end().success());
    Tool::new("qemu-img").args(["check", "-q"]).arg(&image).run();
}

#[test]
fn a_daemon_that_cannot_open_a_disk_is_never_ready() {
    let manager = Manager::new();
    fs::remove_file(manager.image("vm1.vdi")).unwrap();
    let mut daemon = manager.start(&[]);
    assert!(!daemon.end().success());
    let states = manager.states();
    assert!(!states.iter().any(|state| state == "READY=1"), "{states:?}");
}

#[test]
fn a_healthy_daemon_feeds_its_watchdog() {
    let manager = Manager::new();
    manager.image("vm1.vdi");
    let mut daemon = manager.start(&[("WATCHDOG_USEC", "400000")]);
    daemon.states_until("READY=1");
    daemon.states_until("WATCHDOG=1");
    let first = Instant::now();
    for _ in 0..5 {
        daemon.states_until("WATCHDOG=1");
    }
    // Five more pings in less than five times the limit: none came too late on average.
    assert!(first.elapsed() < Duration::from_secs(2), "{:?}", first.elapsed());
    daemon.signal(Signal::TERM);
    assert!(daemon.end().success());
}

#[test]
fn a_socket_of_unknown_name_keeps_the_daemon_from_starting() {
    let manager = Manager::new();
    manager.image("vm1.vdi");
    let mut daemon = manager.start(&[("LISTEN_FDNAMES", "nbd:metrics")]);
    assert!(!daemon.end().success());
    let said = manager.log();
    assert!(said.contains("\"metrics\""), "{said}");
}

/// A service manager: it listens for the service, which inherits `nbd` and `control`, and hears it out.
struct Manager {
    folder: TempDir,
    notify: UnixDatagram,
    nbd: PathBuf,
    nbd_listener: UnixListener,
    control_listener: UnixListener,
}

/// The service.
struct Service<'a> {
    child: Child,
    manager: &'a Manager,
}

impl Manager {
    fn new() -> Manager {
        let folder = tempfile::tempdir().unwrap();
        let notify = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        notify.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let nbd = folder.path().join("nbd");
        let nbd_listener = UnixListener::bind(&nbd).unwrap();
        let control_listener = UnixListener::bind(folder.path().join("control")).unwrap();
        Manager { folder, notify, nbd, nbd_listener, control_listener }
    }

    /// Makes an image, and a configuration that serves it as `vm1`.
    fn image(&self, name: &str) -> PathBuf {
        let image = self.folder.path().join(name);
        Tool::new("qemu-img").args(["create", "-q", "-f", "vdi"]).arg(&image).arg("16M").run();
        let config = format!("[disk.vm1]\nfile = {image:?}\n");
        fs::write(self.folder.path().join("diskchain.toml"), config).unwrap();
        image
    }

    fn start(&self, environment: &[(&str, &str)]) -> Service<'_> {
        let log = fs::File::create(self.folder.path().join("log")).unwrap();
        let child = Command::new("sh")
            // Standard streams are what a parent can hand over; the shell moves them to 3 and 4.
            .arg("-c")
            .arg(r#"exec 3<&0 4<&1 </dev/null >&2; export LISTEN_PID=$$; exec "$0" "$@""#)
            .arg(diskchain_binary())
            .args(["serve", "--config"])
            .arg(self.folder.path().join("diskchain.toml"))
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(self.nbd_listener.try_clone().unwrap())))
            .stdout(Stdio::from(std::os::fd::OwnedFd::from(self.control_listener.try_clone().unwrap())))
            .stderr(log)
            .env("NOTIFY_SOCKET", self.folder.path().join("notify"))
            .env("LISTEN_FDS", "2")
            .env("LISTEN_FDNAMES", "nbd:control")
            .env_remove("WATCHDOG_PID")
            .env_remove("WATCHDOG_USEC")
            .envs(environment.iter().copied())
            .spawn()
            .expect("sh starts");
        Service { child, manager: self }
    }

    /// The states of one datagram.
    fn receive(&self) -> std::io::Result<Vec<String>> {
        let mut buffer = [0; 4096];
        let length = self.notify.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned).collect())
    }

    /// All that was sent and not yet received.
    fn states(&self) -> Vec<String> {
        self.notify.set_nonblocking(true).unwrap();
        std::iter::from_fn(|| self.receive().ok()).flatten().collect()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }
}

impl Service<'_> {
    /// Waits until the service sends `state`; returns all that it sent up to then.
    #[track_caller]
    fn states_until(&mut self, state: &str) -> Vec<String> {
        let mut states = Vec::new();
        while !states.iter().any(|sent| sent == state) {
            match self.manager.receive() {
                Ok(sent) => states.extend(sent),
                Err(error) => panic!("no {state} ({error}) after {states:?}\n{}", self.manager.log()),
            }
        }
        states
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    #[track_caller]
    fn end(&mut self) -> std::process::ExitStatus {
        wait_for(&mut self.child, Duration::from_secs(40)).expect("the daemon ends")
    }
}

impl Drop for Service<'_> {
    fn drop(&mut self) {
        // Fails only when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// ---- The whole under a real systemd ----

#[test]
fn the_first_client_starts_the_daemon() {
    Machine::installed().play("activation");
}

#[test]
fn restart_kill_and_stop_lose_nothing() {
    Machine::installed().play("restart");
}

#[test]
fn a_daemon_that_stands_still_is_replaced() {
    Machine::installed().play("watchdog");
}

#[test]
fn the_service_is_ready_only_when_its_disks_are_open() {
    Machine::installed().play("readiness");
}

#[test]
fn a_wrong_configuration_is_told_and_not_tried_again() {
    Machine::installed().play("mistake");
}

#[test]
fn the_sandbox_keeps_the_daemon_to_its_folder() {
    Machine::installed().play("sandbox");
}

#[test]
fn groups_say_who_may_look_change_and_connect() {
    Machine::installed().play("rights");
}

#[test]
fn drop_ins_open_and_close_the_network() {
    Machine::installed().play("drop-ins");
}

#[test]
fn an_instance_serves_a_configuration_of_its_own() {
    Machine::installed().play("instance");
}

#[test]
fn a_scenario_that_fails_fails_its_test() {
    let ended = Machine::installed().run("step reached\nexpect answer 41 42\n");
    assert_eq!(ended.status.code(), Some(1), "{ended}");
    assert!(ended.log.contains("FAILED: answer is '41', not '42'"), "{ended}");
}
