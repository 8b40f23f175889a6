//! Random damage to the tars that are extracted: nothing is written outside, whatever they say.

use std::fs::File;
use std::io::{Seek as _, Write as _};

use super::archive::{Extraction, Limits, Made};
use super::image::{Image, Layer};
use super::remarks::Remarks;
use super::tree::Tree;

fn seeds() -> Vec<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    let mut add = |name: &str, kind: tar::EntryType, link: &str, contents: &[u8]| {
        header.set_entry_type(kind);
        header.set_size(contents.len() as u64);
        header.set_mode(0o4755);
        header.set_mtime(1_700_000_000);
        match kind {
            tar::EntryType::Symlink | tar::EntryType::Link => {
                tar.append_link(&mut header, name, link).unwrap();
            }
            _ => tar.append_data(&mut header, name, contents).unwrap(),
        }
    };
    add("d/", tar::EntryType::Directory, "", b"");
    add("d/file", tar::EntryType::Regular, "", b"contents");
    add("d/hard", tar::EntryType::Link, "d/file", b"");
    add("d/link", tar::EntryType::Symlink, "../..", b"");
    add(&"n".repeat(150), tar::EntryType::Regular, "", b"long");
    let layer = tar.into_inner().unwrap();
    let mut image = tar::Builder::new(Vec::new());
    for (name, contents) in [
        ("l/layer.tar", layer.as_slice()),
        (
            "manifest.json",
            br#"[{"Config":"c.json","Layers":["l/layer.tar"]}]"#,
        ),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        image.append_data(&mut header, name, contents).unwrap();
    }
    vec![layer, image.into_inner().unwrap()]
}

/// Puts right checksums where headers may be: most damage is to be found behind them.
fn mend(tar: &mut [u8]) {
    for block in tar.chunks_exact_mut(512) {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

#[test]
fn fuzz_extract_nothing_is_written_outside_and_no_more_than_is_allowed() {
    let limits = Limits {
        bytes: 1 << 20,
        entries: 100,
        ratio: 10,
    };
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("canary"), "alive").unwrap();
    let mut number = 0_u64;
    impound_fuzz::run("extract", &seeds(), |random, mut bytes| {
        if random.below(4) > 0 {
            mend(&mut bytes);
        }
        number += 1;
        let at = outside.path().join(number.to_string());
        let tree = Tree::create(&at).unwrap();
        let mut remarks = Remarks::create(&outside.path().join("remarks")).unwrap();
        let mut made = Made::default();
        let size = bytes.len() as u64;
        Extraction::new(tree, size, &[], limits, &mut made, &mut remarks)
            .run(&bytes[..], u64::MAX, &|_| ())
            .unwrap();
        assert!(made.bytes <= limits.bytes);
        drop(remarks);
        std::fs::remove_dir_all(&at).unwrap();
        std::fs::remove_file(outside.path().join("remarks")).unwrap();
        let left: Vec<_> = std::fs::read_dir(outside.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "something was written beside the target");
    });
    assert_eq!(
        std::fs::read(outside.path().join("canary")).unwrap(),
        b"alive"
    );
}

#[test]
fn fuzz_image_any_saved_image_has_layers_within_it_or_none() {
    let mut file: File = tempfile::tempfile().unwrap();
    impound_fuzz::run("extract-image", &seeds(), |random, mut bytes| {
        if random.below(4) > 0 {
            mend(&mut bytes);
        }
        file.set_len(0).unwrap();
        file.rewind().unwrap();
        file.write_all(&bytes).unwrap();
        let Ok(image) = Image::read(&file, &|_| ()) else {
            return;
        };
        for place in image.layers.into_iter().filter_map(|(_, place)| place.ok()) {
            let Ok(mut layer) = Layer::open(&file, place) else {
                continue;
            };
            // A layer that says it is longer than its image ends where that does.
            let most = 64 << 20;
            let mut limited = std::io::Read::take(&mut layer, most);
            let read = std::io::copy(&mut limited, &mut std::io::sink());
            assert!(read.is_err() || read.is_ok_and(|read| read < most));
        }
    });
}
