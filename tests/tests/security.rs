//! What a client or the daemon's own bounds could turn into harm: memory shares, and the sandbox around the process.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::Path;

use diskchain_tests::chain::{Base, Chain};
use diskchain_tests::client::{Client, Request};
use diskchain_tests::server::{Server, diskchain};
use diskchain_tests::tool::wait_until;

const MIB: u64 = 1 << 20;

/// A served 64 MiB VDI, with `server` lines in its config.
fn served(server: &str) -> (Chain, Server) {
    let chain = Chain::new(Base::Vdi, 64 * MIB);
    let config = chain.config().replace("[server]\n", &format!("[server]\n{server}\n"));
    let server = Server::diskchain_config(chain.dir(), &config);
    (chain, server)
}

#[test]
fn a_write_larger_than_a_clients_share_of_the_memory_goes_through() {
    // A quarter of the memory is what one client may hold.
    let (_chain, server) = served("max_request_size = \"2MiB\"\nmax_buffer_memory = \"2MiB\"");
    let mut client = server.connect("");
    for at in 0..4 {
        client.write(at * 2 * MIB, &vec![at as u8 + 1; 2 << 20]).expect("a write of all the memory");
    }
    assert!(client.read(2 * MIB, 2 << 20).expect("read").iter().all(|byte| *byte == 2));
    client.disconnect().expect("a clean goodbye");
    server.stop();
}

#[test]
fn a_burst_of_reads_beyond_the_memory_of_a_client_is_answered_to_the_last() {
    let (_chain, server) = served("max_request_size = \"1MiB\"\nmax_buffer_memory = \"1MiB\"");
    let mut client = server.connect("");
    client.write(0, &vec![7; MIB as usize]).expect("write what is read");
    for _ in 0..20 {
        for _ in 0..40 {
            client.send(&Request::Read { offset: 0, len: 200 << 10 }).expect("send");
        }
        while client.in_flight() > 0 {
            let (_, data) = client.receive().expect("a reply");
            assert!(data.expect("data").iter().all(|byte| *byte == 7));
        }
    }
    client.disconnect().expect("a clean goodbye");
    server.stop();
}

/// What `/proc` says under `field` of each thread of a process.
fn of_every_thread(pid: u32, field: &str) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("a process has threads");
    let status = threads.map(|thread| {
        let status = fs::read_to_string(thread.expect("a thread").path().join("status"));
        let status = status.expect("a thread's status");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("a known field");
        line.trim().to_owned()
    });
    status.collect()
}

/// A configuration in `dir` of an ephemeral disk, whose image it makes in `dir/images`.
fn ephemeral(dir: &Path) -> String {
    fs::create_dir(dir.join("images")).expect("make a folder");
    let image = dir.join("images/top.vdi");
    diskchain(&["image", "create", "--size", "1MiB"]).arg(&image).run();
    format!(
        "[server]\nlisten = [\"unix:diskchain.sock\"]\ncontrol = \"off\"\ndefault_export = \"a\"\n\
         [disk.a]\nfile = {image:?}\nephemeral = true\n"
    )
}

/// Puts another folder into the place of `images`, which the configuration names.
fn replace_images(dir: &Path) {
    fs::rename(dir.join("images"), dir.join("gone")).expect("move a folder");
    fs::create_dir(dir.join("images")).expect("make a folder");
}

#[test]
fn every_thread_of_a_daemon_with_a_configuration_is_in_the_sandbox() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::diskchain_config(dir.path(), &ephemeral(dir.path()));
    assert!(server.log().contains("sandboxed: only the files and ports"), "{}", server.log());
    server.connect("").write(0, &[7; 4096]).expect("an overlay is made in the folder of the configuration");
    let privileges = of_every_thread(server.pid(), "NoNewPrivs:");
    assert!(privileges.len() > 2, "the runtime has threads");
    assert!(privileges.iter().all(|no_new| no_new == "1"), "{privileges:?}");
    // Whichever thread serves a client is kept to the folder that was there, not to what has its name now.
    replace_images(dir.path());
    let refused = || Client::connect(server.socket(), "").and_then(|mut client| client.read(0, 512)).is_err();
    wait_until("the first overlay is gone with its client", 10, refused);
    for _ in 0..16 {
        assert!(refused(), "an overlay was made in a foreign folder");
    }
    assert!(server.log().matches("ermission denied").count() > 16, "{}", server.log());
    server.stop();
}

#[test]
fn a_daemon_that_is_told_to_does_without_the_sandbox() {
    let dir = tempfile::tempdir().unwrap();
    let config = ephemeral(dir.path());
    let server = Server::diskchain_config_with(dir.path(), &config, &["--no-sandbox"]);
    assert!(!server.log().contains("sandbox"), "{}", server.log());
    assert!(of_every_thread(server.pid(), "NoNewPrivs:").iter().all(|no_new| no_new == "0"));
    replace_images(dir.path());
    server.connect("").write(0, &[7; 4096]).expect("an overlay is made anywhere");
    server.stop();
}

#[test]
fn a_kernel_that_knows_less_of_landlock_or_nothing_serves_all_the_same_and_says_so() {
    for (inject, says, level) in [
        ("landlock_create_ruleset:error=ENOSYS", "not sandboxed: there is no Landlock here", "WARN"),
        ("landlock_create_ruleset:error=EOPNOTSUPP", "not sandboxed: there is no Landlock here", "WARN"),
        ("landlock_create_ruleset:error=EPERM", "not sandboxed: there is no Landlock here", "WARN"),
        ("landlock_restrict_self:error=EPERM", "not sandboxed: ", "WARN"),
        // Asked for its version first: that of Linux 5.13, and of Linux 6.2.
        ("landlock_create_ruleset:retval=1:when=1", "sandboxed as far as this kernel can", "INFO"),
        ("landlock_create_ruleset:retval=3:when=1", "sandboxed as far as this kernel can", "INFO"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::diskchain_config_injected(dir.path(), &ephemeral(dir.path()), inject);
        let log = server.log();
        let line = log.lines().find(|line| line.contains(says)).unwrap_or_else(|| panic!("{inject}: {log}"));
        assert!(line.contains(level), "{inject}: {line}");
        server.connect("").write(0, &[7; 4096]).unwrap_or_else(|error| panic!("{inject}: {error}"));
        let privileges = of_every_thread(server.pid(), "NoNewPrivs:");
        assert!(privileges.iter().all(|no_new| no_new == "1"), "{inject}: {privileges:?}");
        server.stop();
    }
}

#[test]
fn all_that_a_configuration_can_name_works_in_the_sandbox() {
    let dir = tempfile::tempdir().unwrap();
    let at = |file: &str| dir.path().join(file);
    for folder in ["elsewhere", "made", "run", "store"] {
        fs::create_dir(at(folder)).unwrap();
    }
    // A parent that a link leads to, one that is searched, and one of the image that is made.
    diskchain(&["image", "create", "--size", "2MiB"]).arg(at("elsewhere/base.vdi")).run();
    symlink(at("elsewhere/base.vdi"), at("base.vdi")).unwrap();
    let child = |child: &str, parent: &str| {
        diskchain(&["image", "create"]).arg(at(child)).arg("--parent").arg(at(parent)).run();
    };
    child("linked.vdi", "elsewhere/base.vdi");
    diskchain(&["image", "create", "--size", "2MiB"]).arg(at("store/base.vdi")).run();
    child("store/searched.vdi", "store/base.vdi");
    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).unwrap().port();
    let store = dir.path().canonicalize().unwrap();
    let config = format!(
        r#"
        [server]
        listen = ["unix:diskchain.sock", "tcp:localhost:{port}"]
        control = "unix:run/control.sock"
        image_dirs = ["store", {elsewhere:?}, "made", "."]
        default_export = "linked"
        [disk.linked]
        layers = [{{ file = "base.vdi" }}, {{ file = "linked.vdi" }}]
        [disk.searched]
        file = "store/searched.vdi"
        parents = "auto"
        [disk.made]
        layers = [
            {{ file = "store/base.vdi" }},
            {{ file = "made/new.vdi", format = "vdi", create = {{ format = "vdi" }} }},
        ]
        [disk.raw]
        file = "made/new.img"
        create = {{ size = "2MiB", format = "raw" }}
        [disk.passing]
        file = "store/base.vdi"
        ephemeral = true
        "#,
        elsewhere = store.join("elsewhere"),
    );
    for run in 0..2 {
        let server = Server::diskchain_config(dir.path(), &config);
        assert!(server.log().contains("sandboxed: only the files and ports"), "{}", server.log());
        for disk in ["linked", "searched", "made", "raw", "passing"] {
            let mut client = server.connect(disk);
            client.write(0, &[run + 1; 4096]).unwrap_or_else(|error| panic!("{disk}: {error}"));
            client.call(&Request::Trim { offset: 1 << 20, len: 1 << 20 }).expect("trim");
            client.flush().expect("flush");
            assert_eq!(client.read(0, 4096).expect("read"), [run + 1; 4096], "{disk}");
        }
        diskchain(&["show", "made", "--control"]).arg(at("run/control.sock")).run();
        std::net::TcpStream::connect(("localhost", port)).expect("TCP by name");
        server.stop();
        let left = fs::read_dir(at("made")).unwrap().count();
        assert_eq!(left, 2, "nothing unfinished is left");
        for socket in ["diskchain.sock", "run/control.sock"] {
            assert!(!at(socket).exists(), "{socket} goes with the daemon");
        }
    }
}

#[test]
fn a_parent_outside_of_image_dirs_is_refused_and_the_sandbox_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut chain = Chain::new(Base::Vdi, 64 * MIB);
    chain.push_child();
    fs::create_dir(dir.path().join("images")).unwrap();
    let child = dir.path().join("images/child.vdi");
    fs::rename(chain.top(), &child).unwrap();
    symlink(chain.base(), dir.path().join("images/base.vdi")).unwrap();
    let config = |base: &Path, dirs: &str| {
        format!(
            "[server]\nlisten = [\"unix:diskchain.sock\"]\ncontrol = \"off\"\n{dirs}\n\
             default_export = \"a\"\n[disk.a]\nlayers = [{{ file = {base:?} }}, {{ file = {child:?} }}]\n"
        )
    };
    let server = Server::diskchain_config(dir.path(), &config(chain.base(), ""));
    server.connect("").write(0, &[7; 4096]).expect("without image_dirs what is named is served");
    server.stop();
    let refusal = |base: &Path| {
        let config = config(base, "image_dirs = [\"images\"]");
        Server::try_diskchain_config(dir.path(), &config).err().expect("a refusal").said
    };
    let said = refusal(chain.base());
    assert!(said.contains("is not inside `image_dirs`"), "{said}");
    let said = refusal(&dir.path().join("images/base.vdi"));
    assert!(said.contains("lies outside of image_dirs") && said.contains("--no-sandbox"), "{said}");
}
