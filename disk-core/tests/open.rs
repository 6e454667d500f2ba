//! From file names to chains: what belongs together opens, everything else is refused with a text that helps.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use disk_core::format::{Variant, find};
use disk_core::open::{
    LayerSpec, NewImage, OnRwFailure, OpenOptions, OpenedChain, Parents, Search, create_image, open_chain,
};
use disk_core::storage::{CacheMode, IoEngine};
use disk_core::{Error, ErrorKind, Result};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

fn listed() -> OpenOptions {
    OpenOptions {
        lock: true,
        read_only: false,
        on_rw_failure: OnRwFailure::Fail,
        cache: CacheMode::Writeback,
        engine: IoEngine::Threads,
        image_dirs: Vec::new(),
        parents: Parents::Listed,
    }
}

fn auto(dir: &Path) -> OpenOptions {
    OpenOptions { parents: Parents::Auto(Search::below(&[dir.to_path_buf()])), ..listed() }
}

fn new_vdi() -> NewImage {
    NewImage::new(find("vdi").unwrap(), Some(8 * MIB))
}

fn named(path: &Path) -> LayerSpec {
    LayerSpec::new(path, None)
}

fn raw(path: &Path) -> LayerSpec {
    LayerSpec::new(path, find("raw"))
}

/// Makes `name` in `dir`: a base, or a child of `parent`.
async fn make(dir: &TempDir, name: &str, parent: Option<&Path>) -> PathBuf {
    let path = dir.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let parent = parent.map(named);
    create_image(&path, &new_vdi(), parent.as_ref(), &[], IoEngine::Threads).await.unwrap();
    path
}

async fn open(paths: &[&PathBuf], options: OpenOptions) -> Result<OpenedChain> {
    open_chain(paths.iter().map(|path| named(path)).collect(), options).await
}

fn refused(outcome: Result<OpenedChain>, kind: ErrorKind, words: &[&str]) -> Error {
    let error = outcome.expect_err("it had to be refused");
    assert_eq!(error.kind(), kind, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "`{word}` is missing in: {error}");
    }
    error
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn files_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_listed_chain_opens_base_first_with_only_its_top_writable() {
    let dir = TempDir::new().unwrap();
    let base = make(&dir, "base.vdi", None).await;
    let middle = make(&dir, "middle.vdi", Some(&base)).await;
    let top = make(&dir, "top.vdi", Some(&middle)).await;
    let chain = open(&[&base, &middle, &top], listed()).await.unwrap();
    let paths: Vec<_> = chain.layers.iter().map(|layer| layer.path.clone()).collect();
    assert_eq!(paths, [base, middle, top]);
    let read_only: Vec<_> = chain.layers.iter().map(|layer| layer.layer.info().read_only).collect();
    assert_eq!(read_only, [true, true, false]);
    assert!(chain.not_writable.is_none());
}

#[tokio::test]
async fn a_child_over_another_image_is_refused_with_both_identities() {
    let dir = TempDir::new().unwrap();
    let right = make(&dir, "right.vdi", None).await;
    let wrong = make(&dir, "wrong.vdi", None).await;
    let child = make(&dir, "child.vdi", Some(&right)).await;
    let info = open(&[&wrong], listed()).await.unwrap().layers[0].layer.info().clone();
    let wanted = open(&[&right], listed()).await.unwrap().layers[0].layer.info().clone();
    let (have, want) = (info.uuid.unwrap().to_string(), wanted.uuid.unwrap().to_string());
    let words = [text(&wrong), text(&child), &have, &want, "it was made over another image"];
    refused(open(&[&wrong, &child], listed()).await, ErrorKind::ParentMismatch, &words);
}

#[tokio::test]
async fn a_parent_that_was_changed_after_its_child_was_made_is_refused() {
    let dir = TempDir::new().unwrap();
    let base = make(&dir, "base.vdi", None).await;
    let child = make(&dir, "child.vdi", Some(&base)).await;
    let opened = open(&[&base], listed()).await.unwrap();
    opened.layers[0].layer.begin_changes().await.unwrap();
    drop(opened);
    let words = ["its parent was changed after it was made", text(&base), text(&child)];
    refused(open(&[&base, &child], listed()).await, ErrorKind::ParentMismatch, &words);
}

#[tokio::test]
async fn a_child_of_a_raw_parent_opens_when_the_parent_is_named() {
    let dir = TempDir::new().unwrap();
    let base = dir.path().join("base.raw");
    fs::write(&base, vec![3; 4 * MIB as usize]).unwrap();
    let child = dir.path().join("child.vdi");
    create_image(&child, &new_vdi(), Some(&raw(&base)), &[], IoEngine::Threads).await.unwrap();
    let chain = open_chain(vec![raw(&base), named(&child)], listed()).await.unwrap();
    let sizes: Vec<_> = chain.layers.iter().map(|layer| layer.layer.info().size).collect();
    assert_eq!(sizes, [4 * MIB, 8 * MIB], "a child may be larger than its parent");
    drop(chain);
    refused(
        open(&[&child], auto(dir.path())).await,
        ErrorKind::ParentMismatch,
        &["does not say which image"],
    );
}

#[tokio::test]
async fn an_image_without_a_parent_cannot_be_above_another() {
    let dir = TempDir::new().unwrap();
    let one = make(&dir, "one.vdi", None).await;
    let two = make(&dir, "two.vdi", None).await;
    refused(open(&[&one, &two], listed()).await, ErrorKind::ParentMismatch, &["would hide", text(&one)]);
}

#[tokio::test]
async fn an_unnamed_parent_is_refused_with_the_lines_to_paste() {
    let dir = TempDir::new().unwrap();
    let base = make(&dir, "base.vdi", None).await;
    let middle = make(&dir, "middle.vdi", Some(&base)).await;
    let top = make(&dir, "top.vdi", Some(&middle)).await;
    let lines = format!(
        "layers = [\n  {{ file = \"{}\", format = \"vdi\" }},\n  {{ file = \"{}\", format = \"vdi\" }},\n  \
         {{ file = \"{}\", format = \"vdi\" }},\n]",
        text(&base),
        text(&middle),
        text(&top)
    );
    for parents in [Parents::Listed, Parents::None] {
        let options = OpenOptions { parents, ..listed() };
        refused(
            open(&[&top], options).await,
            ErrorKind::ParentMismatch,
            &["its parent is not named", &lines],
        );
    }
}

#[tokio::test]
async fn a_parent_that_is_nowhere_is_a_comment_with_its_uuid_in_the_lines_to_paste() {
    let dir = TempDir::new().unwrap();
    let base = make(&dir, "base.vdi", None).await;
    let uuid = open(&[&base], listed()).await.unwrap().layers[0].layer.info().uuid.unwrap();
    let child = make(&dir, "child.vdi", Some(&base)).await;
    fs::remove_file(&base).unwrap();
    let comment = format!("  # {{ file = \"…\", format = \"…\" }},  the image with UUID {uuid}\n");
    let words = [&format!("no image in {} has UUID {uuid}", text(dir.path())), &comment, text(&child)];
    refused(open(&[&child], auto(dir.path())).await, ErrorKind::NotFound, &words);
}

#[tokio::test]
async fn parents_are_found_by_identity_in_folders_below_whatever_their_names() {
    let dir = TempDir::new().unwrap();
    let base = make(&dir, "deep/er/base.vdi", None).await;
    let middle = make(&dir, "else/middle.vdi", Some(&base)).await;
    let top = make(&dir, "top.vdi", Some(&middle)).await;
    let moved = dir.path().join("deep/er/no-image.txt");
    fs::rename(&base, &moved).unwrap();
    let chain = open(&[&top], auto(dir.path())).await.unwrap();
    let paths: Vec<_> = chain.layers.iter().map(|layer| layer.path.clone()).collect();
    assert_eq!(paths, [moved, middle, top.clone()]);
    drop(chain);
    let beside = OpenOptions { parents: Parents::Auto(Search::beside(&top)), ..listed() };
    refused(open(&[&top], beside).await, ErrorKind::NotFound, &["no image in"]);
}

#[tokio::test]
async fn a_search_follows_no_symbolic_link_out_of_its_directories() {
    let (dir, outside) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let base = make(&outside, "base.vdi", None).await;
    let child = make(&dir, "child.vdi", Some(&base)).await;
    symlink(&base, dir.path().join("base.vdi")).unwrap();
    symlink(outside.path(), dir.path().join("folder")).unwrap();
    refused(open(&[&child], auto(dir.path())).await, ErrorKind::NotFound, &["no image in"]);
    assert!(open(&[&child], auto(outside.path())).await.is_ok(), "it is the right parent");
}

#[tokio::test]
async fn two_copies_of_a_parent_are_ambiguous_but_a_changed_copy_is_passed_over() {
    let dir = TempDir::new().unwrap();
    let base = make(&dir, "base.vdi", None).await;
    let copy = dir.path().join("copy.vdi");
    fs::copy(&base, &copy).unwrap();
    let child = make(&dir, "child.vdi", Some(&base)).await;
    let words = [text(&base), text(&copy), "more than one image has the UUID"];
    refused(open(&[&child], auto(dir.path())).await, ErrorKind::ParentMismatch, &words);
    let changed = open(&[&copy], listed()).await.unwrap();
    changed.layers[0].layer.begin_changes().await.unwrap();
    drop(changed);
    let chain = open(&[&child], auto(dir.path())).await.unwrap();
    assert_eq!(chain.layers[0].path, base);
}

#[tokio::test]
async fn a_hard_link_to_the_parent_is_no_second_candidate() {
    let dir = TempDir::new().unwrap();
    let base = make(&dir, "base.vdi", None).await;
    fs::hard_link(&base, dir.path().join("again.vdi")).unwrap();
    let child = make(&dir, "child.vdi", Some(&base)).await;
    assert_eq!(open(&[&child], auto(dir.path())).await.unwrap().layers.len(), 2);
}

#[tokio::test]
async fn images_that_are_each_others_parents_are_refused_and_do_not_hang() {
    const UUID: u64 = 0x188;
    const PARENT_UUID: u64 = 0x1a8;
    const TYPE: u64 = 0x4c;
    let dir = TempDir::new().unwrap();
    let base = make(&dir, "base.vdi", None).await;
    let child = make(&dir, "child.vdi", Some(&base)).await;
    let mut uuid = [0; 16];
    fs::File::open(&child).unwrap().read_exact_at(&mut uuid, UUID).unwrap();
    let header = fs::File::options().write(true).open(&base).unwrap();
    header.write_all_at(&uuid, PARENT_UUID).unwrap();
    header.write_all_at(&4u32.to_le_bytes(), TYPE).unwrap();
    refused(open(&[&child], auto(dir.path())).await, ErrorKind::ParentMismatch, &["is its child too"]);
}

#[tokio::test]
async fn one_file_twice_in_a_chain_is_refused_under_any_name() {
    let dir = TempDir::new().unwrap();
    let base = make(&dir, "base.vdi", None).await;
    let (hard, soft) = (dir.path().join("hard.vdi"), dir.path().join("soft.vdi"));
    fs::hard_link(&base, &hard).unwrap();
    symlink(&base, &soft).unwrap();
    for other in [&base, &hard, &soft] {
        refused(open(&[&base, other], listed()).await, ErrorKind::InvalidImage, &["twice in a chain"]);
    }
}

#[tokio::test]
async fn raw_is_never_guessed_for_writing_but_may_be_for_reading() {
    let dir = TempDir::new().unwrap();
    let disk = dir.path().join("disk.img");
    fs::write(&disk, [0; 4096]).unwrap();
    refused(open(&[&disk], listed()).await, ErrorKind::InvalidImage, &["format = \"raw\"", "--format raw"]);
    let reading = open(&[&disk], OpenOptions { read_only: true, ..listed() }).await.unwrap();
    assert_eq!(reading.layers[0].layer.info().format, "raw");
    drop(reading);
    assert!(!open_chain(vec![raw(&disk)], listed()).await.unwrap().layers[0].layer.info().read_only);
}

#[tokio::test]
async fn what_is_named_raw_is_raw_whatever_a_guest_wrote_to_its_first_sector() {
    let dir = TempDir::new().unwrap();
    let image = make(&dir, "looks-like.vdi", None).await;
    let chain = open_chain(vec![raw(&image)], listed()).await.unwrap();
    let info = chain.layers[0].layer.info();
    assert_eq!((info.format, info.size), ("raw", fs::metadata(&image).unwrap().len()));
}

#[tokio::test]
async fn an_image_outside_of_image_dirs_is_refused_also_through_a_link() {
    let (dir, outside) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let image = make(&outside, "a.vdi", None).await;
    let inside = make(&dir, "b.vdi", None).await;
    let (link, good_link) = (dir.path().join("link.vdi"), outside.path().join("good.vdi"));
    symlink(&image, &link).unwrap();
    symlink(&inside, &good_link).unwrap();
    let missing = outside.path().join("missing");
    let options = OpenOptions { image_dirs: vec![missing, dir.path().to_path_buf()], ..listed() };
    for path in [&image, &link] {
        let words = [text(path), text(&image), "outside of image_dirs"];
        refused(open(&[path], options.clone()).await, ErrorKind::PermissionDenied, &words);
    }
    assert_eq!(open(&[&good_link], options.clone()).await.unwrap().layers[0].path, inside);
    let spec = LayerSpec { create: Some(new_vdi()), ..named(&outside.path().join("new.vdi")) };
    refused(open_chain(vec![spec], options).await, ErrorKind::PermissionDenied, &["outside of image_dirs"]);
}

#[tokio::test]
async fn a_fifo_and_a_directory_are_refused_at_once() {
    let dir = TempDir::new().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let start = Instant::now();
    for path in [&fifo, &dir.path().to_path_buf()] {
        refused(
            open(&[path], listed()).await,
            ErrorKind::InvalidImage,
            &[text(path), "neither a regular file"],
        );
    }
    // A fifo among the images of a search must not stop it either.
    let base = make(&dir, "base.vdi", None).await;
    let child = make(&dir, "child.vdi", Some(&base)).await;
    assert_eq!(open(&[&child], auto(dir.path())).await.unwrap().layers.len(), 2);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn parents_are_shared_and_the_top_is_not() {
    let dir = TempDir::new().unwrap();
    let base = make(&dir, "base.vdi", None).await;
    let one = make(&dir, "one.vdi", Some(&base)).await;
    let two = make(&dir, "two.vdi", Some(&base)).await;
    let first = open(&[&base, &one], listed()).await.unwrap();
    let second = open(&[&base, &two], listed()).await.expect("both children use one base");
    refused(open(&[&base, &one], listed()).await, ErrorKind::Locked, &[text(&one)]);
    refused(open(&[&base], listed()).await, ErrorKind::Locked, &[text(&base)]);
    let read_only = OpenOptions { read_only: true, ..listed() };
    refused(open(&[&base, &one], read_only.clone()).await, ErrorKind::Locked, &[text(&one)]);
    drop((first, second));
    let first = open(&[&base, &one], read_only.clone()).await.unwrap();
    let second = open(&[&base, &one], read_only).await.expect("many may read");
    assert!(first.layers[1].layer.info().read_only && second.layers[1].layer.info().read_only);
}

#[tokio::test]
async fn a_top_that_cannot_be_written_falls_back_to_reading_only_if_that_was_asked_for() {
    let dir = TempDir::new().unwrap();
    let image = make(&dir, "a.vdi", None).await;
    let reader = open(&[&image], OpenOptions { read_only: true, ..listed() }).await.unwrap();
    refused(open(&[&image], listed()).await, ErrorKind::Locked, &[text(&image)]);
    let fallback = OpenOptions { on_rw_failure: OnRwFailure::ReadOnly, ..listed() };
    let chain = open(&[&image], fallback.clone()).await.unwrap();
    assert!(chain.layers[0].layer.info().read_only);
    assert_eq!(chain.not_writable.expect("the reason is told").kind(), ErrorKind::Locked);
    drop((reader, chain.layers));
    assert!(open(&[&image], fallback).await.unwrap().not_writable.is_none());
}

#[tokio::test]
async fn without_locking_nothing_is_locked_and_nothing_is_in_the_way() {
    let dir = TempDir::new().unwrap();
    let image = make(&dir, "a.vdi", None).await;
    let unlocked = OpenOptions { lock: false, ..listed() };
    let first = open(&[&image], unlocked.clone()).await.unwrap();
    let second = open(&[&image], listed()).await.expect("the first has no lock");
    refused(open(&[&image], listed()).await, ErrorKind::Locked, &[text(&image)]);
    open(&[&image], unlocked).await.expect("it does not look at the lock of the second");
    drop((first, second));
}

#[tokio::test]
async fn missing_images_of_a_chain_are_made_once_and_then_left_alone() {
    let dir = TempDir::new().unwrap();
    let (base, top) = (dir.path().join("base.vdi"), dir.path().join("top.vdi"));
    let chain = || {
        let overlay = NewImage { variant: Some(Variant::Differencing), size: None, ..new_vdi() };
        vec![
            LayerSpec { create: Some(new_vdi()), ..named(&base) },
            LayerSpec { create: Some(overlay), ..named(&top) },
        ]
    };
    let first = open_chain(chain(), listed()).await.unwrap();
    let uuid = first.layers[1].layer.info().uuid;
    assert_eq!(first.layers[1].layer.info().size, 8 * MIB, "the size of its parent");
    drop(first);
    let again = open_chain(chain(), listed()).await.unwrap();
    assert!(uuid.is_some() && again.layers[1].layer.info().uuid == uuid);
    assert_eq!(files_in(dir.path()), ["base.vdi", "top.vdi"], "nothing unfinished is left");
}

#[tokio::test]
async fn two_that_make_one_missing_image_at_once_end_up_with_one() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.vdi");
    let read = OpenOptions { read_only: true, ..listed() };
    let open_one = || open_chain(vec![LayerSpec { create: Some(new_vdi()), ..named(&path) }], read.clone());
    let (one, two) = tokio::join!(open_one(), open_one());
    let uuid = |chain: Result<OpenedChain>| chain.unwrap().layers[0].layer.info().uuid;
    assert_eq!(uuid(one), uuid(two));
    assert_eq!(files_in(dir.path()), ["a.vdi"]);
}

#[tokio::test]
async fn what_a_format_cannot_have_is_refused_before_any_file_is_made() {
    let dir = TempDir::new().unwrap();
    let base_dir = TempDir::new().unwrap();
    let base = make(&base_dir, "base.vdi", None).await;
    let raw_format = find("raw").unwrap();
    let cases = [
        (NewImage { size: Some(1000), ..new_vdi() }, false, "multiple of 512"),
        (NewImage { size: Some(0), ..new_vdi() }, false, "not 0"),
        (NewImage { size: None, ..new_vdi() }, false, "size of the disk is missing"),
        (NewImage { block_size: Some(3 << 19), ..new_vdi() }, false, "powers of two"),
        (NewImage { comment: Some("x".repeat(300)), ..new_vdi() }, false, "comment of 300 bytes"),
        (NewImage { variant: Some(Variant::Differencing), ..new_vdi() }, false, "needs a parent"),
        (NewImage { variant: Some(Variant::Fixed), ..new_vdi() }, true, "variant fixed and a parent exclude"),
        (NewImage { format: raw_format, ..new_vdi() }, true, "raw images are dynamic or fixed"),
        (NewImage { format: raw_format, block_size: Some(MIB), ..new_vdi() }, false, "no blocks"),
        (NewImage { format: raw_format, uuid: Some(uuid::Uuid::nil()), ..new_vdi() }, false, "no UUID"),
    ];
    for (new, with_parent, words) in cases {
        let parent = with_parent.then(|| named(&base));
        let made = create_image(&dir.path().join("new"), &new, parent.as_ref(), &[], IoEngine::Threads).await;
        let error = made.expect_err(words);
        assert!(matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::OutOfRange), "{error}");
        assert!(error.to_string().contains(words), "`{words}` is missing in: {error}");
        assert!(files_in(dir.path()).is_empty(), "{words}");
    }
}

#[tokio::test]
async fn an_image_that_could_not_be_finished_leaves_nothing_behind() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("huge.raw");
    let huge = NewImage::new(find("raw").unwrap(), Some(i64::MAX as u64 / 512 * 512));
    let error = create_image(&path, &huge, None, &[], IoEngine::Threads).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert!(files_in(dir.path()).is_empty());
}

#[tokio::test]
async fn an_existing_file_is_never_replaced_not_even_a_dangling_link() {
    let dir = TempDir::new().unwrap();
    let (file, link) = (dir.path().join("file"), dir.path().join("link"));
    fs::write(&file, "precious").unwrap();
    symlink("nowhere", &link).unwrap();
    for path in [&file, &link] {
        let error = create_image(path, &new_vdi(), None, &[], IoEngine::Threads).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
    }
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    assert_eq!(files_in(dir.path()), ["file", "link"]);
}

#[tokio::test]
async fn no_child_is_made_over_an_image_that_is_being_written() {
    let dir = TempDir::new().unwrap();
    let base = make(&dir, "base.vdi", None).await;
    let writer = open(&[&base], listed()).await.unwrap();
    let child = dir.path().join("child.vdi");
    let made = create_image(&child, &new_vdi(), Some(&named(&base)), &[], IoEngine::Threads).await;
    assert_eq!(made.unwrap_err().kind(), ErrorKind::Locked);
    drop(writer);
    assert_eq!(files_in(dir.path()), ["base.vdi"]);
}

#[tokio::test]
async fn a_fixed_raw_image_takes_its_space_at_once() {
    use std::os::unix::fs::MetadataExt;
    let dir = TempDir::new().unwrap();
    for (variant, allocated) in [(Variant::Fixed, MIB), (Variant::Dynamic, 0)] {
        let path = dir.path().join(variant.name());
        let new = NewImage { variant: Some(variant), ..NewImage::new(find("raw").unwrap(), Some(MIB)) };
        create_image(&path, &new, None, &[], IoEngine::Threads).await.unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.len(), metadata.blocks() * 512), (MIB, allocated), "{variant}");
    }
}

#[tokio::test]
async fn a_resolved_path_is_not_opened_through_a_link_that_was_put_there_since() {
    use disk_core::storage::{self, OpenOptions};
    let dir = TempDir::new().unwrap();
    let image = fs::canonicalize(make(&dir, "folder/a.vdi", None).await).unwrap();
    let (folder, link) = (dir.path().join("other"), dir.path().join("link.vdi"));
    symlink(image.parent().unwrap(), &folder).unwrap();
    symlink(&image, &link).unwrap();
    let resolved = OpenOptions { follow_links: false, ..OpenOptions::read_only() };
    assert!(storage::open(&image, &resolved).await.is_ok());
    for path in [link, folder.join("a.vdi")] {
        assert!(storage::open(&path, &resolved).await.is_err(), "{}", path.display());
        assert!(storage::open(&path, &OpenOptions::read_only()).await.is_ok(), "{}", path.display());
    }
}
