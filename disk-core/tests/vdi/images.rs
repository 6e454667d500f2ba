//! Images that are made here and read by others, and the other way round; old and odd ones.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use disk_core::ByteRange;
use disk_core::ErrorKind;
use disk_core::buf::Buf;
use disk_core::chain::{Chain, ChainOptions, Piece};
use disk_core::format::vdi::Vdi;
use disk_core::format::{CreateOptions, Format, Layer, ParentIdentity, Place, Repair, Space, Value, Variant};
use disk_core::storage::{MemStorage, Storage};
use uuid::Uuid;

use crate::disk::Rng;

const MIB: u64 = 1 << 20;

pub fn dynamic(size: u64) -> CreateOptions {
    CreateOptions {
        size,
        variant: Variant::Dynamic,
        parent: None,
        block_size: None,
        uuid: None,
        comment: None,
    }
}

pub async fn made(options: CreateOptions) -> Arc<MemStorage> {
    let storage = Arc::new(MemStorage::new(0).named("made.vdi"));
    Vdi.create(storage.clone(), options).await.expect("the options are good");
    storage
}

pub async fn open(storage: &Arc<MemStorage>, read_only: bool) -> disk_core::Result<Arc<dyn Layer>> {
    Vdi.open(storage.clone(), read_only).await
}

/// Layers as a disk, base first.
pub fn chain_of(layers: &[&Arc<dyn Layer>]) -> Chain {
    Chain::new(layers.iter().map(|layer| Arc::clone(layer)).collect(), ChainOptions::default())
}

pub async fn try_read(chain: &Chain, range: ByteRange) -> disk_core::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for piece in chain.read(range).await? {
        match piece {
            Piece::Data(data) => bytes.extend_from_slice(&data),
            Piece::Hole(len) => bytes.resize(bytes.len() + len as usize, 0),
        }
    }
    Ok(bytes)
}

pub async fn read(chain: &Chain, range: ByteRange) -> Vec<u8> {
    try_read(chain, range).await.expect("readable")
}

pub async fn write(chain: &Chain, at: u64, bytes: &[u8]) {
    chain.write(ByteRange::at(at, bytes.len() as u64), Buf::copy_from(bytes)).await.expect("writable");
}

/// Writes bytes into an image that nobody has open.
pub async fn patch(storage: &MemStorage, at: u64, bytes: &[u8]) {
    storage.write(at, Buf::copy_from(bytes)).await.expect("a patch fits");
}

pub fn word(storage: &MemStorage, at: usize) -> u32 {
    u32::from_le_bytes(storage.to_vec()[at..at + 4].try_into().expect("four bytes"))
}

/// Runs qemu-img on a copy of the image, whose path comes last. Whether it succeeded, and what it said.
pub fn qemu_img(args: &[&str], storage: &MemStorage) -> (bool, String) {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), storage.to_vec()).expect("room for the image");
    let output =
        Command::new("qemu-img").args(args).arg(file.path()).output().expect("qemu-img is installed");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[track_caller]
pub fn clean_for_qemu(storage: &MemStorage) {
    let (clean, text) = qemu_img(&["check", "-f", "vdi"], storage);
    assert!(clean && text.contains("No errors were found"), "{text}");
}

/// A version 0.2 image of `blocks` blocks of 1 MiB, as its makers of 2005 laid it out: everything packed. Block 1 is
/// in slot 0 and full of `fill`.
fn version_0_2(blocks: u32, fill: u8) -> MemStorage {
    let mut file = vec![0; 420];
    file[..21].copy_from_slice(b"<<< innotek GmbH >>>\n");
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x40, &0xbeda_107f_u32.to_le_bytes());
    put(0x44, &2u32.to_le_bytes());
    put(0x48, &1u32.to_le_bytes());
    put(0x50, b"an old friend");
    put(0x150, &[7, 0, 0, 0, 16, 0, 0, 0, 63, 0, 0, 0, 0, 2, 0, 0]);
    put(0x160, &(u64::from(blocks) * MIB).to_le_bytes());
    put(0x168, &(MIB as u32).to_le_bytes());
    put(0x16c, &blocks.to_le_bytes());
    put(0x170, &1u32.to_le_bytes());
    put(0x174, &[1; 16]);
    put(0x184, &[2; 16]);
    for block in 0..blocks {
        file.extend(if block == 1 { 0 } else { u32::MAX }.to_le_bytes());
    }
    file.resize(file.len() + MIB as usize, fill);
    MemStorage::from_bytes(&file).named("old.vdi")
}

#[tokio::test]
async fn what_is_written_is_there_after_opening_again_and_qemu_finds_nothing_wrong() {
    let storage = made(dynamic(10 * MIB + 512)).await;
    let layer = open(&storage, false).await.unwrap();
    let chain = chain_of(&[&layer]);
    write(&chain, 5 * MIB - 3, b"across two blocks").await;
    write(&chain, 10 * MIB + 500, b"the very end").await;
    write(&chain, MIB, &vec![7; MIB as usize]).await;
    chain.flush().await.unwrap();
    layer.settle().await.unwrap();
    let again = open(&storage, true).await.unwrap();
    assert_eq!(again.allocated(), 4 * MIB);
    let chain = chain_of(&[&again]);
    assert_eq!(read(&chain, ByteRange::at(5 * MIB - 4, 19)).await, b"\0across two blocks\0");
    assert_eq!(read(&chain, ByteRange::at(10 * MIB + 500, 12)).await, b"the very end");
    assert!(read(&chain, ByteRange::at(MIB, MIB)).await.iter().all(|&b| b == 7));
    clean_for_qemu(&storage);
}

#[tokio::test]
async fn after_discards_compaction_leaves_an_image_as_small_as_its_data_and_clean_for_qemu() {
    let storage = made(dynamic(32 * MIB)).await;
    let layer = open(&storage, false).await.unwrap();
    let chain = chain_of(&[&layer]);
    for block in 0..32u8 {
        write(&chain, u64::from(block) * MIB, &vec![block + 1; MIB as usize]).await;
    }
    for block in (0..32).filter(|block| block % 3 != 1) {
        chain.discard(ByteRange::at(block * MIB, MIB)).await.unwrap();
    }
    chain.flush().await.unwrap();
    let mut moves = 0;
    loop {
        let blocks = layer.compactable();
        if blocks.is_empty() {
            break;
        }
        moves += blocks.len();
        layer.compact(&blocks).await.unwrap();
    }
    assert!(moves > 0 && moves <= 11, "{moves} moves for 11 blocks that stay");
    layer.settle().await.unwrap();
    assert_eq!(storage.len(), 2 * MIB + 11 * MIB);
    clean_for_qemu(&storage);
    let again = open(&storage, true).await.unwrap();
    let chain = chain_of(&[&again]);
    for block in 0..32 {
        let expected = if block % 3 == 1 { block as u8 + 1 } else { 0 };
        let bytes = read(&chain, ByteRange::at(block * MIB, MIB)).await;
        assert!(bytes.iter().all(|&byte| byte == expected), "block {block}");
    }
}

/// More blocks than are remembered as the last ones at once, and new ones between the steps.
#[tokio::test]
async fn compaction_of_thousands_of_blocks_moves_none_twice_while_others_are_written() {
    const BLOCK: u64 = MIB;
    const BLOCKS: u64 = 4_000;
    let storage = made(dynamic((BLOCKS + 100) * BLOCK)).await;
    let layer = open(&storage, false).await.unwrap();
    let chain = chain_of(&[&layer]);
    // In an order that has nothing to do with that of the disk.
    for n in 0..BLOCKS {
        write(&chain, n * 7919 % BLOCKS * BLOCK, &n.to_le_bytes()).await;
    }
    let stays = |n: u64| n % 3 == 1;
    for n in (0..BLOCKS).filter(|&n| !stays(n)) {
        chain.discard(ByteRange::at(n * 7919 % BLOCKS * BLOCK, BLOCK)).await.unwrap();
    }
    chain.flush().await.unwrap();
    let (mut moves, mut steps) = (0, 0);
    loop {
        let blocks = layer.compactable();
        if blocks.is_empty() {
            break;
        }
        moves += blocks.len() as u64;
        steps += 1;
        layer.compact(&blocks).await.unwrap();
        if steps < 20 {
            write(&chain, (BLOCKS + steps) * BLOCK, b"new").await;
        }
    }
    let left = (0..BLOCKS).filter(|&n| stays(n)).count() as u64 + 19;
    assert!(steps > 50 && moves <= left, "{moves} moves of {left} blocks in {steps} steps");
    layer.settle().await.unwrap();
    let before = storage.len() - left * BLOCK;
    assert!(before <= 2 * MIB, "{before} bytes more than its blocks");
    clean_for_qemu(&storage);
    for n in 0..BLOCKS {
        let expected = if stays(n) { n.to_le_bytes() } else { [0; 8] };
        assert_eq!(read(&chain, ByteRange::at(n * 7919 % BLOCKS * BLOCK, 8)).await, expected, "{n}");
    }
}

#[tokio::test]
async fn freed_space_goes_back_to_the_host_without_compaction() {
    let storage = made(dynamic(8 * MIB)).await;
    let layer = open(&storage, false).await.unwrap();
    let chain = chain_of(&[&layer]);
    write(&chain, 0, &vec![1; 8 * MIB as usize]).await;
    chain.flush().await.unwrap();
    let full = storage.allocated();
    chain.discard(ByteRange::new(0, 4 * MIB)).await.unwrap();
    chain.flush().await.unwrap();
    assert_eq!(storage.allocated(), full - 4 * MIB);
    assert_eq!(layer.allocated(), 4 * MIB);
}

#[tokio::test]
async fn images_that_qemu_made_read_as_qemu_reads_them() {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("raw");
    let mut content = vec![0; 7 * MIB as usize + 1536];
    let mut rng = Rng(5);
    for block in [0, 2, 3, 7] {
        let start = block * MIB as usize + 777;
        let end = content.len().min(start + 300_000);
        content[start..end].fill_with(|| rng.next() as u8);
    }
    std::fs::write(&raw, &content).unwrap();
    for (options, space) in [("static=off", Space::Blocks), ("static=on", Space::Preallocated)] {
        let vdi = folder.path().join(options);
        let convert = Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", "vdi", "-o", options])
            .args([&raw, &vdi])
            .status();
        assert!(convert.expect("qemu-img is installed").success());
        let storage = Arc::new(MemStorage::from_bytes(&std::fs::read(&vdi).unwrap()));
        let layer = open(&storage, false).await.unwrap();
        assert_eq!((layer.info().size, layer.info().space), (content.len() as u64, space));
        let chain = chain_of(&[&layer]);
        assert!(read(&chain, ByteRange::new(0, content.len() as u64)).await == content, "{options}");
        write(&chain, 5 * MIB, b"ours").await;
        layer.settle().await.unwrap();
        clean_for_qemu(&storage);
    }
}

#[tokio::test]
async fn an_image_of_version_0_2_is_written_in_place_of_its_unaligned_self() {
    let storage = Arc::new(version_0_2(3, 9));
    let before = storage.to_vec();
    let layer = open(&storage, false).await.unwrap();
    let info = layer.info();
    assert_eq!((info.size, info.block_size, info.variant), (3 * MIB, MIB, "dynamic"));
    let chain = chain_of(&[&layer]);
    assert_eq!(read(&chain, ByteRange::at(MIB - 1, 2)).await, [0, 9]);
    write(&chain, 2 * MIB + 5, b"new").await;
    layer.settle().await.unwrap();
    let after = storage.to_vec();
    assert_eq!(word(&storage, 0x170), 2, "blocks allocated");
    assert_eq!(word(&storage, 420 + 8), 1, "entry of block 2");
    assert_ne!(after[0x184..0x194], before[0x184..0x194], "modification UUID");
    let changed = [0x170..0x174, 0x184..0x194, 428..432, before.len()..after.len()];
    for at in (0..after.len()).filter(|at| !changed.iter().any(|range| range.contains(at))) {
        assert_eq!(after[at], before[at], "byte {at}");
    }
    let again = open(&storage, true).await.unwrap();
    assert_eq!(read(&chain_of(&[&again]), ByteRange::at(2 * MIB + 4, 5)).await, b"\0new\0");
}

#[tokio::test]
async fn comment_geometry_flags_and_unknown_bytes_of_a_header_stay_as_they_are() {
    let storage = made(CreateOptions { comment: Some("Ä comment".into()), ..dynamic(4 * MIB) }).await;
    patch(&storage, 0x50, &1u32.to_le_bytes()).await;
    patch(&storage, 0x15c, &[1, 2, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0]).await;
    patch(&storage, 0x1c8, &[5, 0, 0, 0, 6, 0, 0, 0, 7, 0, 0, 0, 0, 2, 0, 0]).await;
    patch(&storage, 0x1f0, b"who knows").await;
    let before = storage.to_vec();
    let layer = open(&storage, false).await.unwrap();
    write(&chain_of(&[&layer]), 0, b"x").await;
    layer.settle().await.unwrap();
    let after = storage.to_vec();
    for at in (0..512).filter(|at| !(0x184..0x188).contains(at) && !(0x198..0x1a8).contains(at)) {
        assert_eq!(after[at], before[at], "byte {at:#x}");
    }
    let facts = Vdi.describe(storage.clone()).await.unwrap().facts;
    let fact = |name| facts.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone());
    assert_eq!(fact("comment"), Some(Value::Text("Ä comment".into())));
    assert_eq!(fact("zero-expand"), Some(Value::Flag(true)));
    let logical = "5 cylinders, 6 heads, 7 sectors of 512 bytes";
    assert_eq!(fact("logical-geometry"), Some(Value::Text(logical.into())));
}

#[tokio::test]
async fn the_modification_identity_changes_once_for_each_opening_that_changes_something() {
    let storage = made(dynamic(4 * MIB)).await;
    let identity = || storage.to_vec()[0x198..0x1a8].to_vec();
    let new = identity();
    let layer = open(&storage, false).await.unwrap();
    layer.settle().await.unwrap();
    assert_eq!(identity(), new, "nothing was changed");
    write(&chain_of(&[&layer]), 0, b"x").await;
    let first = identity();
    assert_ne!(first, new);
    write(&chain_of(&[&layer]), 3 * MIB, b"x").await;
    assert_eq!(identity(), first);
    let again = open(&storage, false).await.unwrap();
    let noted = again.info().modification_uuid.unwrap();
    assert_eq!(noted.to_bytes_le()[..], first[..]);
    write(&chain_of(&[&again]), 0, b"y").await;
    assert_ne!(identity(), first);
}

#[tokio::test]
async fn blocks_with_extra_bytes_are_found_behind_them_and_never_moved() {
    let storage = made(dynamic(8 * MIB)).await;
    patch(&storage, 0x17c, &4096u32.to_le_bytes()).await;
    let layer = open(&storage, false).await.unwrap();
    let chain = chain_of(&[&layer]);
    write(&chain, 0, &vec![1; 3 * MIB as usize]).await;
    for block in 0..3 {
        let place = layer.lookup(ByteRange::at(block * MIB, 2 * MIB)).place;
        assert_eq!(place, Place::Data(2 * MIB + block * (MIB + 4096) + 4096));
    }
    assert_eq!(layer.lookup(ByteRange::new(0, 2 * MIB)).len, MIB, "the next block is not adjacent");
    chain.discard(ByteRange::at(0, MIB)).await.unwrap();
    chain.flush().await.unwrap();
    chain.flush().await.unwrap();
    assert_eq!(layer.compactable(), []);
    layer.settle().await.unwrap();
    let again = open(&storage, false).await.unwrap();
    let bytes = read(&chain_of(&[&again]), ByteRange::new(0, 8 * MIB)).await;
    assert!((0..8 * MIB).all(|at| bytes[at as usize] == u8::from((MIB..3 * MIB).contains(&at))));
}

#[tokio::test]
async fn blocks_that_lie_together_are_one_mapping() {
    let storage = made(dynamic(64 * MIB)).await;
    let layer = open(&storage, false).await.unwrap();
    write(&chain_of(&[&layer]), 0, &vec![1; 8 * MIB as usize]).await;
    let mapping = layer.lookup(ByteRange::new(100, 20 * MIB));
    assert_eq!((mapping.place, mapping.len), (Place::Data(2 * MIB + 100), 8 * MIB - 100));
    let rest = layer.lookup(ByteRange::new(8 * MIB, 64 * MIB));
    assert_eq!((rest.place, rest.len), (Place::Absent, 56 * MIB));
}

#[tokio::test]
async fn an_odd_disk_size_is_rounded_down_as_virtualbox_does() {
    let storage = made(dynamic(4 * MIB)).await;
    patch(&storage, 0x170, &(4 * MIB - 100).to_le_bytes()).await;
    let layer = open(&storage, false).await.unwrap();
    assert_eq!(layer.info().size, 4 * MIB - 512);
    let facts = Vdi.describe(storage).await.unwrap().facts;
    assert!(facts.contains(&("size-before-rounding", Value::Bytes(4 * MIB - 100))));
}

#[tokio::test]
async fn a_new_image_has_what_virtualbox_expects() {
    let uuid = Uuid::new_v4();
    let storage = made(CreateOptions { uuid: Some(uuid), ..dynamic(10 << 30) }).await;
    assert_eq!((word(&storage, 0x44), word(&storage, 0x48), word(&storage, 0x4c)), (0x10001, 400, 1));
    assert_eq!(
        (word(&storage, 0x154), word(&storage, 0x158)),
        (1 << 20, 2 << 20),
        "map and data on whole MiB"
    );
    assert!(storage.len() == 2 * MIB && storage.allocated() < 3 * MIB);
    let info = open(&storage, true).await.unwrap().info().clone();
    assert_eq!((info.uuid, info.variant), (Some(uuid), "dynamic"));
    assert!(info.modification_uuid.is_some_and(|id| id != uuid));
    assert_eq!((info.parent_uuid, info.parent_modification_uuid), (None, None));
    clean_for_qemu(&storage);
}

#[tokio::test]
async fn a_fixed_image_has_all_its_space_and_keeps_it() {
    let storage = made(CreateOptions { variant: Variant::Fixed, ..dynamic(5 * MIB + 512) }).await;
    let layer = open(&storage, false).await.unwrap();
    assert_eq!((layer.info().space, layer.allocated()), (Space::Preallocated, 6 * MIB));
    assert_eq!(storage.len(), 8 * MIB);
    let mapping = layer.lookup(ByteRange::new(0, 5 * MIB + 512));
    assert_eq!((mapping.place, mapping.len), (Place::Data(2 * MIB), 5 * MIB + 512));
    let chain = chain_of(&[&layer]);
    write(&chain, 4 * MIB, b"x").await;
    chain.discard(ByteRange::new(0, 5 * MIB)).await.unwrap();
    layer.settle().await.unwrap();
    assert_eq!((layer.allocated(), storage.len()), (6 * MIB, 8 * MIB));
    clean_for_qemu(&storage);
}

#[tokio::test]
async fn a_child_notes_its_parent_and_hides_it_where_it_has_zeroes() {
    let base = made(dynamic(4 * MIB)).await;
    let parent = open(&base, false).await.unwrap();
    write(&chain_of(&[&parent]), 0, &vec![5; 4 * MIB as usize]).await;
    let parent = open(&base, true).await.unwrap();
    let (uuid, modification_uuid) = (parent.info().uuid, parent.info().modification_uuid);
    let options = CreateOptions {
        variant: Variant::Differencing,
        parent: Some(ParentIdentity { uuid, modification_uuid }),
        ..dynamic(4 * MIB)
    };
    let storage = made(options).await;
    let child = open(&storage, false).await.unwrap();
    assert!(child.info().differencing);
    assert_eq!((child.info().parent_uuid, child.info().parent_modification_uuid), (uuid, modification_uuid));
    let chain = chain_of(&[&parent, &child]);
    write(&chain, MIB, b"top").await;
    chain.discard(ByteRange::at(MIB, MIB)).await.unwrap();
    chain.zero(ByteRange::at(2 * MIB, MIB), zeroes()).await.unwrap();
    child.settle().await.unwrap();
    let entries: Vec<u32> = (0..4).map(|block| word(&storage, (1 << 20) + 4 * block)).collect();
    assert_eq!(entries, [u32::MAX, u32::MAX - 1, u32::MAX - 1, u32::MAX]);
    let again = open(&storage, true).await.unwrap();
    let bytes = read(&chain_of(&[&parent, &again]), ByteRange::new(0, 4 * MIB)).await;
    assert!((0..4).all(|block| bytes[block << 20] == [5, 0, 0, 5][block]));
}

fn zeroes() -> disk_core::chain::ZeroRequest {
    disk_core::chain::ZeroRequest { may_free: true, fast_only: false }
}

#[tokio::test]
async fn options_that_the_format_has_no_place_for_are_refused_before_anything_is_written() {
    let parent = Some(ParentIdentity { uuid: None, modification_uuid: None });
    let cases = [
        (CreateOptions { block_size: Some(3 * MIB), ..dynamic(MIB) }, "block size 3145728"),
        (CreateOptions { block_size: Some(64 << 10), ..dynamic(MIB) }, "block size 65536"),
        (CreateOptions { comment: Some("x".repeat(256)), ..dynamic(MIB) }, "at most 255 bytes"),
        (CreateOptions { parent, ..dynamic(MIB) }, "only a differencing image"),
        (CreateOptions { variant: Variant::Differencing, ..dynamic(MIB) }, "needs a parent"),
        (dynamic(1000), "disk size 1000"),
        (dynamic(4 << 50), "disk size 4503599627370496"),
        (dynamic(3 << 50), "needs blocks of more than 1048576 bytes"),
    ];
    for (options, words) in cases {
        let storage = Arc::new(MemStorage::new(0).named("new.vdi"));
        let error = Vdi.create(storage.clone(), options).await.expect_err(words);
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().starts_with("new.vdi: ") && error.to_string().contains(words), "{error}");
        assert_eq!(storage.len(), 0, "{words}");
    }
}

/// The corpus of foreign images, if it is here. It is no part of the product.
fn corpus() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus");
    let root = std::env::var_os("DISKCHAIN_CORPUS").map_or(beside, PathBuf::from).join("foreign");
    if root.join("MANIFEST.tsv").is_file() {
        return Some(root);
    }
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "no corpus at {}", root.display());
    eprintln!(
        "NOTICE: no corpus at {} (DISKCHAIN_CORPUS names it): this test proved nothing",
        root.display()
    );
    None
}

#[tokio::test]
async fn images_of_other_programs_read_byte_for_byte_as_their_manifest_says() {
    let Some(root) = corpus() else { return };
    let manifest = std::fs::read_to_string(root.join("MANIFEST.tsv")).unwrap();
    let chains = [
        ("vdi-dissect-basic", &["basic"][..]),
        ("vbox-vdi-dyn", &["vbox-vdi-dyn"]),
        ("vbox-vdi-bs4M", &["vbox-vdi-bs4M"]),
        ("vbox-vdi-diff3", &["base", "d1", "d2", "d3"]),
    ];
    for (name, files) in chains {
        let line = manifest.lines().find(|line| line.starts_with(&format!("{name}\t"))).expect(name);
        let columns: Vec<&str> = line.split('\t').collect();
        let mut layers: Vec<Arc<dyn Layer>> = Vec::new();
        for file in files {
            let path = root.join("images").join(name).join(format!("{file}.vdi.zst"));
            let unpacked =
                Command::new("zstd").args(["-dcq"]).arg(&path).output().expect("zstd is installed");
            assert!(unpacked.status.success(), "{}", path.display());
            let storage = Arc::new(MemStorage::from_bytes(&unpacked.stdout).named(*file));
            let report = Vdi.check(storage.clone(), Repair::Nothing).await.unwrap();
            assert!(report.findings.is_empty(), "{file}: {:?}", report.findings);
            let layer = open(&storage, false).await.unwrap();
            let parent = layers.last().map(|parent| parent.info());
            assert_eq!(layer.info().parent_uuid, parent.and_then(|parent| parent.uuid), "{file}");
            let noted = layer.info().parent_modification_uuid;
            assert_eq!(noted, parent.and_then(|parent| parent.modification_uuid), "{file}");
            layers.push(layer);
        }
        let size = layers.last().expect("there are files").info().size;
        assert_eq!(size.to_string(), columns[3], "{name}");
        let chain = chain_of(&layers.iter().collect::<Vec<_>>());
        let bytes = read(&chain, ByteRange::new(0, size)).await;
        assert_eq!(sha256(&bytes), columns[4], "{name}");
    }
}

fn sha256(bytes: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), bytes).expect("room for the content");
    let output = Command::new("sha256sum").arg(file.path()).output().expect("coreutils are installed");
    String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn every_block_size_and_every_type_is_written_and_read() {
    for shift in 17..=27 {
        let block_size = 1u64 << shift;
        let size = 3 * block_size + 512;
        let storage = made(CreateOptions { block_size: Some(block_size), ..dynamic(size) }).await;
        let layer = open(&storage, false).await.unwrap();
        let chain = chain_of(&[&layer]);
        write(&chain, 2 * block_size - 1, b"border").await;
        write(&chain, size - 3, b"end").await;
        layer.settle().await.unwrap();
        let again = open(&storage, true).await.unwrap();
        assert_eq!((again.info().block_size, again.allocated()), (block_size, 3 * block_size));
        let chain = chain_of(&[&again]);
        assert_eq!(read(&chain, ByteRange::at(2 * block_size - 2, 8)).await, b"\0border\0");
        assert_eq!(read(&chain, ByteRange::at(size - 3, 3)).await, b"end");
    }
    for (raw, name, differencing) in
        [(1u32, "dynamic", false), (2, "fixed", false), (3, "undo", true), (4, "differencing", true)]
    {
        let storage = made(dynamic(4 * MIB)).await;
        patch(&storage, 0x4c, &raw.to_le_bytes()).await;
        let layer = open(&storage, false).await.unwrap();
        assert_eq!((layer.info().variant, layer.info().differencing), (name, differencing));
        // A fixed image without its blocks has to allocate like any other.
        assert_eq!(layer.info().space, Space::Blocks);
        write(&chain_of(&[&layer]), MIB, b"x").await;
        assert_eq!(layer.allocated(), MIB);
    }
}
