//! The writable layer of real containers, read by the agent itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use impound_agent::runtime::docker::Docker;
use impound_evidence::Sha256;
use impound_evidence::index::{FileIndex, Kind, Limits};
use impound_proto::agent::v1::LayerRequest;
use serde_json::Value;
use tonic::{Code, Status};

use crate::engine::{Container, SOCKET, docker, line};
use crate::world::{Artifact, World, case};

/// Additions, a change, a deletion, a directory that replaces the image's, links, a hole and data.
const TAMPER: &str = "echo evil > /srv/implant; chmod 4755 /srv/implant; rm /etc/doomed; \
    echo x >> /etc/passwd; ln -s /srv/implant /srv/link; ln /srv/implant /srv/hard; \
    mkdir -p '/srv/dir with space'; busybox rm -r /tmp; mkdir /tmp; echo t > /tmp/new; \
    busybox mkfifo /srv/pipe; \
    dd if=/dev/urandom of=/srv/random bs=1024 count=3000 2>/dev/null; \
    dd if=/dev/zero of=/srv/hole bs=1 count=1 seek=104857600 2>/dev/null";

async fn layer(world: &mut World, id: &str) -> Result<Artifact, Status> {
    let request = case(LayerRequest {
        container_id: id.to_owned(),
    });
    Artifact::read(world.client.layer(request).await?.into_inner()).await
}

/// Members as the controller lists them, by absolute path.
fn members(artifact: &Artifact) -> BTreeMap<String, Value> {
    let mut index = FileIndex::new(Kind::Other, Limits::default());
    index.update(&artifact.bytes);
    let lines = String::from_utf8(index.finish().lines.files).unwrap();
    lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|line| (format!("/{}", line["path"].as_str().unwrap()), line))
        .collect()
}

/// Where the engine says the layer is.
fn upper(container: &Container) -> String {
    let format = "{{.GraphDriver.Data.UpperDir}}";
    line(docker(&["inspect", "-f", format, &container.id]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_has_what_docker_diff_names_and_nothing_else() {
    let mut world = World::docker().await;
    let container = Container::running(TAMPER);
    let artifact = layer(&mut world, &container.id).await.unwrap();
    assert!(artifact.complete(), "{:?}", artifact.trailer.reasons);
    assert_eq!(artifact.header.source_id, container.id);
    assert_eq!(artifact.header.media_type, "application/x-tar");
    let image = line(docker(&["inspect", "-f", "{{.Image}}", &container.id]));
    let call = &artifact.header.api_call;
    assert!(
        call.starts_with(&format!("upperdir={}", upper(&container))),
        "{call}"
    );
    assert!(call.contains(&image), "{call}");

    let members = members(&artifact);
    let diff = String::from_utf8(docker(&["diff", &container.id])).unwrap();
    let mut named = BTreeSet::new();
    for change in diff.lines() {
        let (kind, path) = change.split_once(' ').unwrap();
        named.insert(path);
        // What an opaque directory hides has no mark of its own.
        let Some(member) = members.get(path) else {
            panic!("{change} is not in the layer");
        };
        assert_eq!(
            member["whiteout"] == true,
            kind == "D",
            "{change}: {member}"
        );
    }
    for path in members
        .keys()
        .filter(|path| *path != "/./" && *path != "/.")
    {
        assert!(
            named.contains(path.as_str()),
            "docker diff does not name {path}"
        );
    }
    assert!(diff.contains("D /etc/doomed"));
    assert_eq!(members["/srv/implant"]["mode"], "4755");
    // The first name in order is the file.
    assert_eq!(members["/srv/implant"]["link"], "srv/hard");
    assert_eq!(
        members["/srv/hard"]["sha256"],
        Sha256::of(b"evil\n").to_string()
    );
    assert_eq!(members["/srv/hole"]["size"], 104_857_601);
    assert!(
        artifact.bytes.len() < 6 << 20,
        "{} bytes",
        artifact.bytes.len()
    );
    assert_eq!(
        members["/tmp"]["xattrs"]["trusted.overlay.opaque"], "eQ==",
        "the directory replaces the image's"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_what_gnu_tar_reads_in_its_directory() {
    let mut world = World::split(Docker::new(SOCKET), false).await;
    let container = Container::running(TAMPER);
    let artifact = layer(&mut world, &container.id).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let tar = dir.path().join("layer.tar");
    std::fs::write(&tar, &artifact.bytes).unwrap();
    // Compares every member with what is on the disk: type, mode, owner, time, contents, link target, device.
    let compared = std::process::Command::new("tar")
        .args(["--warning=no-unknown-keyword", "--numeric-owner", "-df"])
        .arg(&tar)
        .args(["-C", &upper(&container)])
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&compared.stdout).into_owned()
        + &String::from_utf8_lossy(&compared.stderr);
    assert!(compared.status.success() && words.is_empty(), "{words}");
    let times = |path: &Path| {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::symlink_metadata(path).unwrap();
        (meta.mtime(), meta.mtime_nsec())
    };
    let members = members(&artifact);
    let file = Path::new(&upper(&container)).join("srv/random");
    let (seconds, nanos) = times(&file);
    let mtime = time::OffsetDateTime::from_unix_timestamp(seconds).unwrap();
    let fraction = format!(".{nanos:09}");
    let told = members["/srv/random"]["mtime"].as_str().unwrap();
    assert!(told.starts_with(&mtime.date().to_string()), "{told}");
    assert!(
        told.contains(fraction.trim_end_matches('0')),
        "{told} {fraction}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_writes_meanwhile_gives_whole_layers() {
    let mut world = World::docker().await;
    let container = Container::create(
        &[],
        "i=0; while true; do echo $i >> /srv/log; echo $i > /srv/now.$i; \
         rm -f /srv/now.$((i-50)); i=$((i+1)); done",
    );
    docker(&["start", &container.id]);
    for _ in 0..5 {
        let artifact = layer(&mut world, &container.id).await.unwrap();
        assert!(artifact.complete(), "{:?}", artifact.trailer.reasons);
        assert!(members(&artifact).contains_key("/srv"));
    }
    docker(&["pause", &container.id]);
    let paused = layer(&mut world, &container.id).await.unwrap();
    docker(&["unpause", &container.id]);
    assert!(members(&paused).contains_key("/srv/log"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_without_a_process_is_refused_with_what_has_its_files() {
    let mut world = World::docker().await;
    let container = Container::exited("true");
    let status = layer(&mut world, &container.id).await.err().unwrap();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(status.message().contains("export"), "{status}");
    let unknown = "ab".repeat(32);
    let status = layer(&mut world, &unknown).await.err().unwrap();
    assert_eq!(status.code(), Code::NotFound, "{status}");
}
