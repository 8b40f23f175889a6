//! `impound evidence extract` on tars that an attacker could have made.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use impound_evidence::SigningKey;
use serde_json::Value;
use tar::{EntryType, Header};

use crate::collection::{Collection, TAR};
use crate::fake::{Ran, impound};
use crate::hostile_tar::Tar;

/// A directory with a tar, a place to extract to, and something outside of it that must not change.
struct World {
    directory: tempfile::TempDir,
}

impl World {
    fn with(tar: Vec<u8>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("x.tar"), tar).unwrap();
        fs::write(directory.path().join("outside"), "as it was").unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn extract(&self, more: &[&str]) -> Ran {
        let (tar, to) = (self.path("x.tar"), self.path("to"));
        let base = ["evidence", "extract", tar.to_str().unwrap(), "--unverified"];
        let to = ["--to", to.to_str().unwrap()];
        let ran = Ran::from(impound(&[&base[..], &to, more].concat()).output().unwrap());
        // Whatever was in the tar: nothing beside the target came or changed.
        let mut names: Vec<_> = fs::read_dir(self.directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert!(
            matches!(
                names.join(" ").as_str(),
                "outside to x.tar" | "outside x.tar"
            ),
            "{names:?}"
        );
        assert_eq!(
            fs::read_to_string(self.path("outside")).unwrap(),
            "as it was"
        );
        ran
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.path("to/x").join(name)).ok()
    }

    fn remarks(&self) -> Vec<(String, String, String)> {
        let text = fs::read_to_string(self.path("to/x.extraction.jsonl")).unwrap();
        text.lines().map(remark).collect()
    }

    fn left_out(&self) -> Vec<(String, String)> {
        let remarks = self.remarks().into_iter();
        let left_out = remarks.filter(|(kind, _, _)| kind == "leftOut");
        left_out.map(|(_, path, why)| (path, why)).collect()
    }
}

fn remark(line: &str) -> (String, String, String) {
    let line: Value = serde_json::from_str(line).unwrap();
    let text = |key: &str| line[key].as_str().unwrap().to_owned();
    (text("kind"), text("path"), text("why"))
}

#[track_caller]
fn assert_left_out(world: &World, expected: &[(&str, &str)]) {
    let got = world.left_out();
    assert_eq!(got.len(), expected.len(), "{got:#?}");
    for ((path, why), (expected_path, expected_why)) in got.iter().zip(expected) {
        assert_eq!(path, expected_path);
        assert!(
            why.contains(expected_why),
            "{path}: {why}, not {expected_why}"
        );
    }
}

#[test]
fn nothing_is_written_outside_of_the_target() {
    let world = World::with(
        Tar::default()
            .file("../outside", b"evil")
            .file("a/../../outside", b"evil")
            .file("/etc/passwd", b"absolute")
            // Through links: to a directory outside, and to one inside.
            .symlink("up", "../../..")
            .file("up/outside", b"evil")
            .symlink("abs", "/")
            .file("abs/etc/planted", b"evil")
            .symlink("deep/d", "x/../../../..")
            .file("deep/d/outside", b"evil")
            .hard_link("shadow", "../../../etc/shadow")
            .hard_link("host", "/etc/hostname")
            .hard_link("through", "up/outside")
            .file("good", b"good")
            .bytes(),
    );
    let ran = world.extract(&[]);
    assert_eq!((ran.code, ran.err.as_str()), (3, ""), "{ran:?}");
    let through = "nothing is written through links";
    assert_left_out(
        &world,
        &[
            ("../outside", "leads up"),
            ("a/../../outside", "leads up"),
            ("up/outside", through),
            ("abs/etc/planted", through),
            ("deep/d", "goes up after a name"),
            ("shadow", "leads up"),
            ("host", "no file that was extracted"),
            ("through", "no file that was extracted"),
        ],
    );
    assert_eq!(world.read("etc/passwd").as_deref(), Some("absolute"));
    assert_eq!(world.read("good").as_deref(), Some("good"));
    // The refused link left its place to a real directory below the target.
    assert_eq!(world.read("deep/d/outside").as_deref(), Some("evil"));
    for (link, target) in [("up", "."), ("abs", ".")] {
        let kept = fs::read_link(world.path("to/x").join(link)).unwrap();
        assert_eq!(kept, Path::new(target), "{link}");
    }
    assert!(ran.out.contains("8 left out"), "{}", ran.out);
}

#[test]
fn devices_pipes_and_set_id_bits_do_not_come_out() {
    let setuid = Tar::header(EntryType::Regular, b"bin/su", b"", 2, 0o6755);
    // 0:0 is overlayfs's mark of a deleted file.
    let mut memory = Tar::header(EntryType::Char, b"dev/mem", b"", 0, 0o600);
    let ustar = memory.as_ustar_mut().unwrap();
    ustar.set_device_major(1);
    ustar.set_device_minor(1);
    memory.set_cksum();
    let world = World::with(
        Tar::default()
            .entry(EntryType::Block, b"dev/sda", b"", b"")
            .raw(&memory, b"")
            .entry(EntryType::Fifo, b"run/pipe", b"", b"")
            .entry(EntryType::new(b'Z'), b"odd", b"", b"")
            .raw(&setuid, b"su")
            .bytes(),
    );
    let ran = world.extract(&[]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert_left_out(
        &world,
        &[
            ("dev/sda", "device"),
            ("dev/mem", "device"),
            ("run/pipe", "pipe"),
            ("odd", "type that is not known, 'Z'"),
        ],
    );
    let made = fs::metadata(world.path("to/x/bin/su")).unwrap();
    assert_eq!((made.mode() & 0o7777, made.mtime()), (0o600, 1_600_000_000));
    let directory = fs::metadata(world.path("to/x/bin")).unwrap();
    assert_eq!(directory.permissions().mode() & 0o7777, 0o700);
    let changed = (
        "changed".to_owned(),
        "bin/su".to_owned(),
        "its set-user-id or set-group-id bit is not kept".to_owned(),
    );
    assert!(world.remarks().contains(&changed));
}

#[test]
fn names_that_are_no_text_come_out_as_they_are_and_same_names_are_told() {
    let world = World::with(
        Tar::default()
            .entry(EntryType::Regular, b"caf\xe9\x1b[31m", b"", b"latin")
            .file("README", b"one")
            .file("readme", b"two")
            .file("README", b"three")
            .bytes(),
    );
    let ran = world.extract(&[]);
    assert_eq!(ran.code, 3, "{ran:?}");
    let odd = world
        .path("to/x")
        .join(OsStr::from_bytes(b"caf\xe9\x1b[31m"));
    assert_eq!(fs::read(odd).unwrap(), b"latin");
    assert_eq!(world.read("README").as_deref(), Some("one"));
    assert_eq!(world.read("readme").as_deref(), Some("two"));
    assert_left_out(
        &world,
        &[("README", "is there already; it is not overwritten")],
    );
    let noted = world
        .remarks()
        .into_iter()
        .filter(|(kind, path, _)| kind == "noted" && path == "readme");
    assert_eq!(noted.count(), 1);
    assert!(!ran.out.contains('\u{1b}'), "{:?}", ran.out);
}

#[test]
fn what_is_there_is_never_overwritten() {
    let world = World::with(Tar::default().file("good", b"new").bytes());
    fs::create_dir_all(world.path("to/x")).unwrap();
    fs::write(world.path("to/x/good"), "old").unwrap();
    let ran = world.extract(&[]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("it is not empty"), "{}", ran.err);
    assert_eq!(world.read("good").as_deref(), Some("old"));
    // A link in the target's place leads nowhere either.
    fs::remove_dir_all(world.path("to/x")).unwrap();
    symlink(world.directory.path(), world.path("to/x")).unwrap();
    assert_eq!(world.extract(&[]).code, 1);
}

#[test]
fn bombs_are_stopped() {
    // One block that becomes 1 TiB: a sparse file of the old GNU form.
    let mut sparse = Header::new_gnu();
    let gnu = sparse.as_gnu_mut().unwrap();
    gnu.name[..6].copy_from_slice(b"sparse");
    gnu.realsize = *b"\x80\0\0\0\0\0\x01\0\0\0\0\0";
    gnu.sparse[0].offset = *b"\x80\0\0\0\0\0\0\xff\xff\xff\xfe\0";
    gnu.sparse[0].numbytes = *b"00000001000\0";
    sparse.set_entry_type(EntryType::GNUSparse);
    sparse.set_size(512);
    sparse.set_mode(0o644);
    sparse.set_mtime(0);
    sparse.set_cksum();
    let world = World::with(
        Tar::default()
            .raw(&sparse, &[1; 512])
            .file("after", b"after")
            .bytes(),
    );
    let ran = world.extract(&[]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert_left_out(&world, &[("sparse", "more than the")]);
    assert_eq!(world.read("after").as_deref(), Some("after"));

    // Headers that a parser would keep in memory.
    let long = Tar::header(EntryType::XHeader, b"pax", b"", 16 << 20, 0o644);
    let world = World::with(
        Tar::default()
            .file("before", b"x")
            .raw(&long, &vec![b'1'; 16 << 20])
            .file("after", b"x")
            .bytes(),
    );
    let ran = world.extract(&[]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert_left_out(&world, &[("", "up to 1048576 can be followed")]);
    assert_eq!(
        (
            world.read("before").is_some(),
            world.read("after").is_some()
        ),
        (true, false)
    );

    // More than was allowed.
    let many = (0..20).fold(Tar::default(), |tar, n| {
        tar.file(&format!("f{n}"), &[0; 100])
    });
    let world = World::with(many.bytes());
    assert_eq!(world.extract(&["--max-entries", "5"]).code, 3);
    assert_left_out(&world, &[("", "more than 5 entries")]);
    fs::remove_dir_all(world.path("to")).unwrap();
    assert_eq!(world.extract(&["--max-bytes", "1K"]).code, 3);
    assert_eq!(world.left_out().len(), 10);
}

#[test]
fn a_tar_that_breaks_off_is_extracted_as_far_as_it_goes() {
    let mut bytes = Tar::default()
        .file("one", b"one")
        .file("two", &[b'2'; 4096])
        .bytes();
    bytes.truncate(512 * 3 + 1000);
    let world = World::with(bytes);
    let ran = world.extract(&[]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert_eq!(world.read("one").as_deref(), Some("one"));
    assert_eq!(world.read("two").map(|two| two.len()), Some(1000));
    assert!(ran.out.contains("the tar is INCOMPLETE"), "{}", ran.out);
    // A second tar behind the end is not looked at, and that is told.
    let mut bytes = Tar::default().file("one", b"one").bytes();
    bytes.extend(Tar::default().file("two", b"two").bytes());
    let world = World::with(bytes);
    assert_eq!(world.extract(&[]).code, 3);
    assert_left_out(&world, &[("", "the tar ends and then more bytes come")]);
}

#[test]
fn many_small_files_come_out_whole() {
    let tar = (0..100_000).fold(Tar::default(), |tar, n| {
        tar.file(&format!("d{}/f{n}", n % 100), b"x")
    });
    let world = World::with(tar.bytes());
    let ran = world.extract(&["-o", "json"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let json: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        (&json["tars"][0]["files"], &json["verified"]),
        (&100_000.into(), &false.into())
    );
    assert_eq!(fs::read_dir(world.path("to/x/d7")).unwrap().count(), 1000);
}

#[test]
fn only_what_is_wanted_comes_out() {
    let tar = || {
        Tar::default()
            .file("etc/nginx/a", b"a")
            .file("etc/hosts", b"h")
            .file("tmp/.x", b"x")
            .bytes()
    };
    let world = World::with(tar());
    assert_eq!(
        world
            .extract(&["--path", "etc/nginx", "--path", "tmp/*"])
            .code,
        0
    );
    let there = ["etc/nginx/a", "etc/hosts", "tmp/.x"].map(|name| world.read(name).is_some());
    assert_eq!(there, [true, false, true]);
    let world = World::with(tar());
    let ran = world.extract(&["--path", "nowhere"]);
    assert_eq!(
        (ran.code, ran.err.contains("no entry of the tar matches")),
        (6, true),
        "{ran:?}"
    );
}

#[test]
fn the_layers_of_a_saved_image_come_out_side_by_side_and_a_bomb_in_one_is_stopped() {
    let zip = |bytes: &[u8]| {
        let mut zip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        zip.write_all(bytes).unwrap();
        zip.finish().unwrap()
    };
    let first = Tar::default().file("etc/a", b"a").bytes();
    let second = zip(&Tar::default()
        .file("etc/b", b"b")
        .file("etc/.wh.a", b"")
        .bytes());
    let bomb = zip(&Tar::default().file("zeros", &vec![0; 192 << 20]).bytes());
    let image = Tar::default()
        .file("1/layer.tar", &first)
        .file("2/layer.tar", &second)
        .file("4/layer.tar", &bomb)
        .symlink("3/layer.tar", "../1/layer.tar")
        .file("manifest.json", br#"[{"Config":"c.json","Layers":["1/layer.tar","2/layer.tar","3/layer.tar","4/layer.tar","5/layer.tar"]}]"#);
    let world = World::with(image.bytes());
    let ran = world.extract(&["--images", "--max-ratio", "50"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    for (name, expected) in [
        ("layer-01/etc/a", "a"),
        ("layer-02/etc/b", "b"),
        ("layer-02/etc/.wh.a", ""),
        ("layer-03/etc/a", "a"),
    ] {
        assert_eq!(world.read(name).as_deref(), Some(expected), "{name}");
    }
    let left_out = world.left_out();
    assert!(
        left_out
            .iter()
            .any(|(path, why)| path == "layer-04/zeros" && why.contains("--max-ratio")),
        "{left_out:?}"
    );
    assert!(
        left_out
            .iter()
            .any(|(path, why)| path == "layer-05" && why.contains("it is not there")),
        "{left_out:?}"
    );
}

/// Each layer may become as much as its own size allows, whatever the ones before it became.
#[test]
fn a_small_layer_on_a_large_one_comes_out() {
    let base = Tar::default()
        .file("usr/lib/large", &vec![7; 4 << 20])
        .bytes();
    let small = Tar::default().file("tmp/implant", &[7; 700 << 10]).bytes();
    let image = Tar::default()
        .file("1/layer.tar", &base)
        .file("2/layer.tar", &small)
        .file(
            "manifest.json",
            br#"[{"Config":"c.json","Layers":["1/layer.tar","2/layer.tar"]}]"#,
        );
    let world = World::with(image.bytes());
    let ran = world.extract(&["--images", "--max-ratio", "2"]);
    assert_eq!((ran.code, world.left_out()), (0, vec![]), "{ran:?}");
    assert_eq!(
        world
            .read("layer-02/tmp/implant")
            .map(|implant| implant.len()),
        Some(700 << 10)
    );
}

/// Readers take such a name for a directory's, or for a file's.
#[test]
fn a_name_that_ends_as_a_directorys_is_one_only_without_contents() {
    let world = World::with(
        Tar::default()
            .file("empty/", b"")
            .file("full/", b"contents")
            .file("", b"nameless")
            .bytes(),
    );
    assert_eq!(world.extract(&[]).code, 3);
    assert_left_out(
        &world,
        &[("full/", "it has contents"), ("", "it has no name")],
    );
    assert!(world.path("to/x/empty").is_dir());
    assert!(!world.path("to/x/full").exists());
}

#[test]
fn what_is_not_kept_of_a_file_is_said() {
    let tar = crate::tars::ended(&[
        crate::tars::pax(
            b'x',
            &[
                (b"SCHILY.xattr.security.capability", b"\x01\0\0\x02"),
                (b"SCHILY.xattr.trusted.overlay.origin", b"x"),
            ],
        ),
        crate::tars::file(b"bin/ping", b"\x7fELF"),
    ]);
    let world = World::with(tar);
    assert_eq!(world.extract(&[]).code, 0);
    let said = (
        "changed".to_owned(),
        "bin/ping".to_owned(),
        "its extended attributes are not kept: security.capability".to_owned(),
    );
    assert_eq!(world.remarks(), [said]);
}

struct Signed {
    collection: Collection,
    key: tempfile::NamedTempFile,
    to: tempfile::TempDir,
}

impl Signed {
    fn new() -> Self {
        let secret = tempfile::NamedTempFile::new().unwrap();
        let pair = SigningKey::generate().unwrap();
        fs::write(secret.path(), pair.to_pem().unwrap().as_str()).unwrap();
        let key = tempfile::NamedTempFile::new().unwrap();
        fs::write(key.path(), pair.verifying_key().to_pem().unwrap()).unwrap();
        let tar = Tar::default().file("tmp/.kworkerd", b"binary").bytes();
        Self {
            collection: Collection::sealed_with(secret.path(), tar),
            key,
            to: tempfile::tempdir().unwrap(),
        }
    }

    fn extract(&self, more: &[&str]) -> Ran {
        let (from, to) = (self.collection.directory.path(), self.to.path());
        let base = [
            "evidence",
            "extract",
            from.to_str().unwrap(),
            "--to",
            to.to_str().unwrap(),
        ];
        Ran::from(impound(&[&base[..], more].concat()).output().unwrap())
    }

    fn there(&self) -> Option<String> {
        let name = "evidence-compromised-nginx-0123456789ab/tmp/.kworkerd";
        fs::read_to_string(self.to.path().join(name)).ok()
    }
}

#[test]
fn a_collection_is_verified_before_anything_is_extracted() {
    let signed = Signed::new();
    let key = signed.key.path().to_str().unwrap();
    assert_eq!(
        signed.extract(&[]).code,
        2,
        "neither --key nor --unverified"
    );
    let ran = signed.extract(&["--key", key]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    assert_eq!(signed.there().as_deref(), Some("binary"));
    let sha256 = signed.collection.sha256(TAR);
    assert!(
        ran.out.contains(&format!("{sha256}, as in the manifest")),
        "{}",
        ran.out
    );

    let signed = Signed::new();
    let key = signed.key.path().to_str().unwrap();
    let mut tar = signed.collection.read(TAR).unwrap();
    tar[600] = b'!';
    signed.collection.write(TAR, &tar);
    let ran = signed.extract(&["--key", key]);
    assert_eq!((ran.code, signed.there()), (1, None), "{ran:?}");
    assert!(
        ran.err.contains("is NOT INTACT, and nothing was extracted") && ran.err.contains(TAR),
        "{}",
        ran.err
    );
    let ran = signed.extract(&["--unverified"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains("compared with NOTHING"), "{}", ran.out);
}

#[test]
fn a_tar_by_itself_is_refused_unless_asked_for() {
    let signed = Signed::new();
    let tar = signed.collection.directory.path().join(TAR);
    let key = signed.key.path().to_str().unwrap();
    let to = signed.to.path().to_str().unwrap();
    let ran = impound(&[
        "evidence",
        "extract",
        tar.to_str().unwrap(),
        "--to",
        to,
        "--key",
        key,
    ]);
    let ran = Ran::from({ ran }.output().unwrap());
    assert_eq!(
        (
            ran.code,
            ran.err.contains("nothing vouches for a tar by itself")
        ),
        (2, true),
        "{ran:?}"
    );
}
