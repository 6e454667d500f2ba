//! fio's NBD engine verifies the checksum of every block that it wrote, aligned to nothing.

use diskchain_tests::chain::{Base, Chain};
use diskchain_tests::tool::Tool;

const MIB: u64 = 1 << 20;

/// Four jobs, each with a connection and a quarter of the disk of its own.
fn verify(chain: &Chain) {
    let server = chain.serve();
    let fio = Tool::new("fio").args(["--name=verify", "--ioengine=nbd", "--rw=randrw", "--iodepth=32"]);
    let fio = fio.args(["--bsrange=512-64k", "--bs_unaligned", "--verify=crc32c", "--verify_fatal=1"]);
    let fio = fio.args(["--numjobs=4", "--size=24M", "--offset_increment=32M", "--fsync=64"]);
    let fio = fio.args(["--randseed=7", "--output-format=json"]).arg(format!("--uri={}", server.uri("")));
    let ended = fio.current_dir(chain.dir()).seconds(240).run();
    // fio prints notes before its JSON.
    let text = ended.text();
    let json = text.find("{\n").map_or("", |start| &text[start..]);
    let report: serde_json::Value = serde_json::from_str(json).unwrap_or_else(|_| panic!("{ended}"));
    let jobs = report["jobs"].as_array().expect("a list of jobs");
    assert_eq!(jobs.len(), 4);
    for job in jobs {
        assert_eq!(job["error"], 0, "{job:#}");
        assert!(job["write"]["io_bytes"].as_u64().is_some_and(|bytes| bytes > MIB), "{job:#}");
    }
    server.stop();
    chain.check();
}

#[test]
fn fio_verifies_what_four_jobs_wrote_to_a_vdi() {
    verify(&Chain::new(Base::Vdi, 128 * MIB));
}

#[test]
fn fio_verifies_what_four_jobs_wrote_to_a_child_of_a_vdi() {
    let mut chain = Chain::new(Base::Vdi, 128 * MIB);
    chain.push_child();
    verify(&chain);
}

#[test]
fn fio_verifies_what_four_jobs_wrote_to_a_raw_image() {
    verify(&Chain::new(Base::Raw, 128 * MIB));
}
