//! What a configuration without errors means.

use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};
use std::time::Duration;

use diskchain_config::plan::{
    Burst, CacheMode, Create, DetectZeroes, Discard, Format, IoEngine, Layer, Limit, Listen, LogFormat,
    LogLevel, OnRwFailure, Parents, Throttle, Variant,
};
use diskchain_config::{Checked, DefaultSockets, FilesToServe, Plan, check, load};

fn read(text: &str) -> Checked {
    let path = Path::new("/etc/diskchain/diskchain.toml");
    check(path, text.to_string(), &DefaultSockets::system()).unwrap_or_else(|errors| panic!("{errors}"))
}

fn plan(text: &str) -> Plan {
    let Checked { plan, warnings } = read(text);
    assert!(warnings.is_empty(), "{warnings}");
    plan
}

fn layer(file: &str, format: Option<Format>) -> Layer {
    Layer { file: file.into(), format, create: None }
}

fn count(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap()
}

fn limit(rate: u64) -> Limit {
    Limit { rate: NonZeroU64::new(rate).unwrap(), burst: None }
}

#[test]
fn the_smallest_configuration_is_complete() {
    let plan = plan("[disk.vm1]\nfile = \"/srv/images/vm1.vdi\"\n");
    let server = &plan.server;
    assert_eq!(server.listen, [Listen::Unix("/run/diskchain-nbd.sock".into())]);
    assert_eq!(server.control, Some("/run/diskchain-control.sock".into()));
    assert_eq!((server.max_connections, server.max_request_size), (count(256), 32 << 20));
    assert_eq!(server.max_buffer_memory, 256 << 20);
    assert_eq!(
        (server.handshake_timeout, server.drain_timeout),
        (Duration::from_secs(10), Duration::from_secs(30))
    );
    assert_eq!((server.io_engine, server.insecure, server.list_exports), (IoEngine::Auto, false, true));
    assert_eq!((&server.default_export, server.image_dirs.len()), (&None, 0));
    assert_eq!((plan.log.level, plan.log.format), (LogLevel::Info, LogFormat::Auto));
    assert_eq!(plan.log.slow_io, Some(Duration::from_millis(250)));

    let [disk] = &plan.disks[..] else { panic!("one disk") };
    assert_eq!((disk.name.as_str(), disk.parents), ("vm1", Parents::None));
    assert_eq!(disk.layers, [layer("/srv/images/vm1.vdi", None)]);
    assert_eq!(
        (disk.cache, disk.discard, disk.detect_zeroes),
        (CacheMode::Writeback, Discard::Unmap, DetectZeroes::Off)
    );
    assert_eq!((disk.logical_block_size, disk.max_in_flight), (512, count(128)));
    assert_eq!((&disk.throttle, &disk.group), (&Throttle::default(), &None));
    assert_eq!(disk.on_rw_failure, OnRwFailure::Fail);
    assert!(disk.writes_top() && !disk.honor_zeroes && !disk.honor_same);

    let [export] = &plan.exports[..] else { panic!("one export") };
    assert_eq!((export.name.as_str(), export.disk.as_str()), ("vm1", "vm1"));
    assert!(export.multi_conn && !export.read_only && export.max_connections.is_none());
    assert_eq!(plan.export("vm1"), Some(export));
    assert_eq!(plan.export(""), None);
}

#[test]
fn an_empty_configuration_is_a_plan_with_a_warning() {
    let Checked { plan, warnings } = read("");
    assert!(plan.disks.is_empty() && plan.exports.is_empty());
    assert_eq!((warnings.errors(), warnings.warnings()), (0, 1));
    assert!(!warnings.render(false).contains("the configuration has"), "a warning is no summary of errors");
}

#[test]
fn a_disk_takes_from_the_defaults_what_it_does_not_say() {
    let plan = plan(
        "[server]\nimage_dirs = [\"/srv\"]\n\
         [defaults.disk]\ncache = \"none\"\nparents = \"auto\"\nthrottle = { bps_total = 7, iops_total = 5 }\n\
         [disk.a]\nfile = \"/srv/a\"\ncache = \"unsafe\"\nthrottle.iops_total = 0\n\
         [disk.b]\nlayers = [{ file = \"/srv/b\" }]\n\
         [disk.c]\nfile = \"/srv/c\"\nformat = \"raw\"\nparents = \"none\"\n",
    );
    let [a, b, c] = &plan.disks[..] else { panic!("three disks") };
    assert_eq!([a.cache, b.cache, c.cache], [CacheMode::Unsafe, CacheMode::None, CacheMode::None]);
    assert_eq!([a.parents, b.parents, c.parents], [Parents::Auto, Parents::Listed, Parents::None]);
    assert_eq!((a.throttle.bps_total, a.throttle.iops_total), (Some(limit(7)), None));
    assert_eq!((b.throttle.bps_total, b.throttle.iops_total), (Some(limit(7)), Some(limit(5))));
}

#[test]
fn limits_and_bursts_are_read_in_their_units() {
    let plan = plan(
        "[throttle.g]\nbps_total = \"1GiB/s\"\n\
         [disk.a]\nfile = \"/a\"\n[disk.a.throttle]\ngroup = \"g\"\niops_total = 2_000\niops_total_max = 8000\n\
         iops_total_max_length = \"30s\"\nbps_write = \"100MiB/s\"\nbps_write_max = \"200MB/s\"\niops_size = \"64KiB\"\n",
    );
    let throttle = &plan.disks[0].throttle;
    let burst =
        |rate, seconds| Burst { rate: NonZeroU64::new(rate).unwrap(), length: Duration::from_secs(seconds) };
    assert_eq!(throttle.iops_total, Some(Limit { burst: Some(burst(8000, 30)), ..limit(2000) }));
    assert_eq!(throttle.bps_write, Some(Limit { burst: Some(burst(200_000_000, 1)), ..limit(100 << 20) }));
    assert_eq!((throttle.iops_size, throttle.bps_total), (NonZeroU64::new(65536), None));
    assert_eq!(plan.disks[0].group.as_deref(), Some("g"));
    assert_eq!(plan.groups["g"], Throttle { bps_total: Some(limit(1 << 30)), ..Throttle::default() });
}

#[test]
fn images_that_are_missing_can_be_made_at_every_height_of_a_chain() {
    let plan = plan(
        "[disk.a]\nlayers = [\n\
         { file = \"base\", format = \"raw\", create = { size = \"1GiB\" } },\n\
         { file = \"top\", create = { format = \"vdi\" } },\n]\n\
         [disk.b]\nfile = \"b\"\ncreate = { size = 1024, format = \"vdi\", variant = \"fixed\" }\n",
    );
    let create = |size, format, variant| Some(Create { size, format, variant });
    let [base, top] = &plan.disks[0].layers[..] else { panic!("two layers") };
    assert_eq!(base.file, Path::new("/etc/diskchain/base"));
    assert_eq!(base.create, create(Some(1 << 30), Format::Raw, Variant::Dynamic));
    assert_eq!(
        (top.format, &top.create),
        (Some(Format::Vdi), &create(None, Format::Vdi, Variant::Differencing))
    );
    assert_eq!(plan.disks[1].top().format, Some(Format::Vdi));
    assert_eq!(plan.disks[1].top().create, create(Some(1024), Format::Vdi, Variant::Fixed));
}

#[test]
fn a_base_is_shared_by_the_disks_over_it() {
    let plan = plan(
        "[disk.a]\nlayers = [{ file = \"/base\" }, { file = \"/a\" }]\n\
         [disk.b]\nlayers = [{ file = \"/base\" }, { file = \"/b\" }]\n\
         [disk.c]\nfile = \"/base\"\nephemeral = true\n",
    );
    assert_eq!(plan.disks.iter().filter(|disk| disk.layers[0].file == Path::new("/base")).count(), 3);
}

#[test]
fn exports_take_from_their_disk_what_they_do_not_say() {
    let plan = plan(
        "[server]\ndefault_export = \"copy\"\n\
         [disk.a]\nfile = \"/a\"\nread_only = true\ndescription = \"about a\"\n\
         [disk.b]\nfile = \"/b\"\n\
         [export.b]\nmulti_conn = false\nmax_connections = 1\n\
         [export.copy]\ndisk = \"a\"\n[export.look]\ndisk = \"b\"\nread_only = true\ndescription = \"only looking\"\n",
    );
    let seen: Vec<_> =
        plan.exports.iter().map(|one| (one.name.as_str(), one.disk.as_str(), one.read_only)).collect();
    assert_eq!(seen, [("a", "a", true), ("b", "b", false), ("copy", "a", true), ("look", "b", true)]);
    assert_eq!(plan.export("").map(|export| export.description.as_str()), Some("about a"));
    assert_eq!(plan.export("look").map(|export| export.description.as_str()), Some("only looking"));
    let b = plan.export("b").unwrap();
    assert_eq!((b.multi_conn, b.max_connections), (false, NonZeroU32::new(1)));
}

#[test]
fn what_is_switched_off_is_off() {
    let plan = plan(
        "x-note = \"mine\"\nversion = 1\n[server]\nlisten = []\ncontrol = \"off\"\nx-owner = 7\n\
         [log]\nslow_io = \"0s\"\n[disk.a]\nfile = \"/a\"\nthrottle = { iops_total = 0, iops_size = 0 }\n",
    );
    assert_eq!((plan.server.listen.len(), &plan.server.control, plan.log.slow_io), (0, &None, None));
    assert_eq!(plan.disks[0].throttle, Throttle::default());
}

#[test]
fn included_files_add_to_the_plan_and_their_paths_start_from_their_own_folder() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    std::fs::create_dir(root.join("conf.d")).unwrap();
    let main = "include = [\"conf.d/*.toml\", \"none.d/*.toml\", \"*.toml\"]\n[disk.a]\nfile = \"a.vdi\"\n";
    std::fs::write(root.join("main.toml"), main).unwrap();
    std::fs::write(root.join("conf.d/b.toml"), "version = 1\n[disk.b]\nfile = \"b.vdi\"\n").unwrap();
    std::fs::write(root.join("conf.d/limits.toml"), "[disk.a.throttle]\niops_read = 10\n").unwrap();

    let Checked { plan, warnings } = load(&root.join("main.toml"), &DefaultSockets::system()).unwrap();
    assert!(warnings.is_empty(), "{warnings}");
    assert_eq!(plan.disk("a").unwrap().top().file, root.join("a.vdi"));
    assert_eq!(plan.disk("a").unwrap().throttle.iops_read, Some(limit(10)));
    assert_eq!(plan.disk("b").unwrap().top().file, root.join("conf.d/b.vdi"));
}

#[test]
fn a_user_without_rights_gets_sockets_below_the_runtime_directory() {
    let sockets = DefaultSockets::under(Path::new("/run/user/1000"));
    let text = "[disk.a]\nfile = \"/a\"\n".to_string();
    let plan = check(Path::new("a.toml"), text, &sockets).unwrap().plan;
    assert_eq!(plan.server.listen, [Listen::Unix("/run/user/1000/diskchain/nbd.sock".into())]);
    assert_eq!(plan.server.control, Some("/run/user/1000/diskchain/control.sock".into()));
}

fn from_files(files: &[&str], format: Option<Format>, read_only: bool) -> Plan {
    let files: Vec<PathBuf> = files.iter().map(PathBuf::from).collect();
    let serve = FilesToServe {
        files: &files,
        format,
        listen: &[],
        insecure: false,
        read_only,
        folder: Path::new("/home/me"),
    };
    Plan::from_files(&serve, &DefaultSockets::system()).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn files_of_a_command_line_are_served_under_their_stems_and_the_first_is_the_default() {
    let plan = from_files(&["vm.vdi", "/srv/a.raw", "../a.vdi"], None, false);
    let seen: Vec<_> =
        plan.disks.iter().map(|disk| (disk.name.as_str(), disk.top().file.to_str().unwrap())).collect();
    assert_eq!(seen, [("a.raw", "/srv/a.raw"), ("a.vdi", "/home/a.vdi"), ("vm", "/home/me/vm.vdi")]);
    assert!(plan.disks.iter().all(|disk| disk.parents == Parents::Auto && disk.writes_top()));
    assert_eq!(plan.server.image_dirs, ["/home/me", "/srv", "/home"].map(PathBuf::from));
    assert_eq!(plan.export("").map(|export| export.name.as_str()), Some("vm"));
    assert_eq!(plan.exports.len(), 3);
    assert_eq!(plan.server.listen, [Listen::Unix("/run/diskchain-nbd.sock".into())]);
}

#[test]
fn files_of_a_command_line_have_the_format_and_rights_it_says() {
    let plan = from_files(&["disk.img"], Some(Format::Raw), true);
    let disk = &plan.disks[0];
    assert_eq!((disk.top().format, disk.parents, disk.read_only), (Some(Format::Raw), Parents::None, true));
    assert!(plan.exports[0].read_only);
}
