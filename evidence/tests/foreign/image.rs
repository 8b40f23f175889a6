//! The archive of a real image: its configuration, history and layers.

use std::fs;
use std::process::Command;

use impound_evidence::index::{Kind, Limits};

use super::tars::index_in;

/// Removes what the test made.
struct Image(&'static str);

impl Drop for Image {
    fn drop(&mut self) {
        for arguments in [
            &["rm", "--force", self.0][..],
            &[
                "rmi",
                "--force",
                "impound-image:web-1",
                "impound-image-base",
            ],
        ] {
            let _ = Command::new("docker").args(arguments).output();
        }
    }
}

fn docker(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("docker")
        .args(arguments)
        .output()
        .expect("this test needs a Docker Engine");
    assert!(
        output.status.success(),
        "docker {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

#[test]
fn a_committed_image_is_described_with_its_history_and_its_layers() {
    let image = Image("impound-image");
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("root.tar");
    let mut tar = super::tars::ended(&[super::tars::file(b"etc/hostname", b"base\n")]);
    tar.resize(10240, 0);
    fs::write(&root, &tar).unwrap();
    docker(&[
        "import",
        "--message",
        "the base",
        root.to_str().unwrap(),
        "impound-image-base",
    ]);
    docker(&["create", "--name", image.0, "impound-image-base", "/none"]);
    let changed = scratch.path().join("dropped");
    fs::write(&changed, b"dropped").unwrap();
    docker(&["cp", changed.to_str().unwrap(), "impound-image:/dropped"]);
    docker(&["commit", "-m", "case INC-7", image.0, "impound-image:web-1"]);
    let archive = scratch.path().join("image.tar");
    docker(&[
        "save",
        "--output",
        archive.to_str().unwrap(),
        "impound-image:web-1",
    ]);
    let id = String::from_utf8(docker(&[
        "image",
        "inspect",
        "--format",
        "{{.Id}}",
        "impound-image:web-1",
    ]))
    .unwrap();

    let seen = index_in(
        &fs::read(&archive).unwrap(),
        1 << 20,
        Kind::Image,
        Limits::default(),
    );
    let described = seen.indexed.image.unwrap();
    assert_eq!(described.problems, Vec::<String>::new());
    assert_eq!(described.images.len(), 1);
    let one = &described.images[0];
    assert_eq!(format!("sha256:{}", one.id), id.trim());
    assert_eq!(one.tags, ["impound-image:web-1"]);
    assert_eq!(one.layers.len(), 2);
    for layer in &one.layers {
        let digest = format!("sha256:{}", layer.sha256.unwrap());
        assert_eq!(layer.diff_id.as_deref(), Some(digest.as_str()));
    }
    assert_eq!(one.history.len(), 2);
    assert_eq!(one.history[0].step["comment"], "the base");
    assert_eq!(one.history[1].step["comment"], "case INC-7");
    assert_eq!(one.history[1].layer, Some(1));
    assert!(one.config.get("history").is_none());
    assert_eq!(one.config["os"], "linux");
}

/// Since Docker 25 an archive holds an OCI layout besides its manifest.json, and layers and configuration lie among
/// its blobs under their digests. The one here was put together in that layout, not by an engine.
#[test]
fn an_archive_in_the_layout_of_docker_25_is_described_like_an_older_one() {
    let archive = include_bytes!("image-of-docker-25.tar");
    let seen = index_in(archive, 700, Kind::Image, Limits::default());
    let described = seen.indexed.image.unwrap();
    assert_eq!(described.problems, Vec::<String>::new());
    assert_eq!(described.images.len(), 1);
    let one = &described.images[0];
    assert_eq!(one.tags, ["impound-image:web-1"]);
    assert_eq!(one.layers.len(), 2);
    for layer in &one.layers {
        let digest = layer.sha256.unwrap().to_string();
        assert_eq!(layer.path, format!("blobs/sha256/{digest}"));
        assert_eq!(layer.diff_id, Some(format!("sha256:{digest}")));
    }
    assert_eq!(one.history[1].step["comment"], "case INC-7");
    assert_eq!(one.history[1].layer, Some(1));
}

#[test]
fn an_archive_that_contradicts_itself_is_described_with_what_does_not_fit() {
    use super::tars::{ended, file, index_in};
    let config = br#"{"rootfs":{"diff_ids":["sha256:00"]},"history":[{"created_by":"x"}]}"#;
    let tar = ended(&[
        file(b"manifest.json", br#"[{"Config":"c.json","Layers":["a/layer.tar","b/layer.tar"]},{"Config":"gone.json"}]"#),
        file(b"c.json", config),
        file(b"a/layer.tar", b"layer"),
    ]);
    let described = index_in(&tar, 700, Kind::Image, Limits::default())
        .indexed
        .image
        .unwrap();
    assert_eq!(described.images.len(), 1);
    let all = described.problems.join("\n");
    for part in [
        "which is not its name",
        "has 1 layers and the archive's manifest 2",
        "layer \"a/layer.tar\" has SHA-256",
        "layer \"b/layer.tar\" is not in the archive",
        "\"gone.json\" is not in the archive",
    ] {
        assert!(all.contains(part), "{part}: {all}");
    }
}
