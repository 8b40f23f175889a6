//! Inspect, diff and export of real containers.

use impound_evidence::Sha256;
use impound_proto::agent::v1::diff_message::Message;
use impound_proto::agent::v1::{
    ChangeKind, ContainerState, DiffRequest, DiffTrailer, InfoRequest, InspectContainerRequest,
    ListContainersRequest, PodSelector,
};
use tonic::{Code, Status};

use crate::engine::{self, Container, docker, line};
use crate::world::{Artifact, NODE, World, case};

/// Leaves additions, a change, a deletion, a link, a hole and 3 MiB of data.
const TAMPER: &str = "echo evil > /srv/implant; chmod 700 /srv/implant; rm /etc/doomed; \
    echo x >> /etc/passwd; ln -s /srv/implant /bin/ls; mkdir -p '/srv/dir with space'; \
    dd if=/dev/urandom of=/srv/random bs=1024 count=3000 2>/dev/null; \
    dd if=/dev/zero of=/srv/hole bs=1 count=1 seek=1048576 2>/dev/null";

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_byte_for_byte_what_docker_export_gives() {
    let mut world = World::docker().await;
    let container = Container::exited(TAMPER);
    let artifact = world.export(&container.id).await.unwrap();
    let reference = docker(&["export", &container.id]);
    assert!(reference.len() > 4 << 20);
    assert_eq!(artifact.bytes.len(), reference.len());
    assert!(artifact.bytes == reference, "the bytes differ");
    assert!(artifact.complete());
    assert_eq!(artifact.header.source_id, container.id);
    assert_eq!(artifact.header.media_type, "application/x-tar");
    let call = &artifact.header.api_call;
    assert!(
        call.starts_with("GET /v1.")
            && call.ends_with(&format!("/containers/{}/export", container.id)),
        "{call}"
    );
    let started = artifact.header.started.unwrap();
    let finished = artifact.trailer.finished.unwrap();
    assert!((started.seconds, started.nanos) <= (finished.seconds, finished.nanos));
    // Docker hands out 32 KiB at a time.
    assert!(
        artifact.chunks <= reference.len() / (256 << 10) + 1,
        "{} chunks",
        artifact.chunks
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_and_a_paused_container_can_be_exported() {
    let mut world = World::docker().await;
    let container = Container::running("echo evil > /srv/implant");
    let running = world.export(&container.id).await.unwrap();
    assert!(running.complete());
    docker(&["pause", &container.id]);
    let paused = world.export(&container.id).await.unwrap();
    assert!(paused.complete());
    assert!(
        paused
            .bytes
            .windows(12)
            .any(|window| window == b"srv/implant\0")
    );
    docker(&["unpause", &container.id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_diff_is_what_docker_diff_prints() {
    let mut world = World::docker().await;
    let container = Container::exited(TAMPER);
    let (text, trailer) = diff(&mut world, &container.id).await.unwrap();
    assert_same_lines(&text, docker(&["diff", &container.id]));
    for change in ["A /srv/implant\n", "D /etc/doomed\n", "C /etc\n"] {
        assert!(text.contains(change), "{change:?} is missing in {text}");
    }
    assert_eq!(trailer.text_sha256, Sha256::of(text.as_bytes()).as_bytes());
    assert_eq!(trailer.changes, text.lines().count() as u64);
    assert!(trailer.started.is_some() && trailer.finished.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_changed_nothing_has_an_empty_diff() {
    let mut world = World::docker().await;
    let container = Container::create(&[], "true");
    let (text, trailer) = diff(&mut world, &container.id).await.unwrap();
    assert_eq!((text.as_str(), trailer.changes), ("", 0));
    assert_eq!(trailer.text_sha256, Sha256::of(b"").as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_diff_comes_in_batches_and_whole() {
    let mut world = World::docker().await;
    let container = Container::exited(
        "mkdir /srv/many; i=0; while [ $i -lt 9000 ]; do echo > /srv/many/$i; i=$((i+1)); done",
    );
    let (text, trailer) = diff(&mut world, &container.id).await.unwrap();
    assert_same_lines(&text, docker(&["diff", &container.id]));
    assert!(trailer.changes > 9000);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inspect_is_the_engines_own_bytes() {
    let mut world = World::docker().await;
    let container = Container::exited("true");
    let artifact = inspect(&mut world, &container.id).await.unwrap();
    let path = format!("/containers/{}/json", container.id);
    assert_eq!(artifact.bytes, engine::http_get(&path));
    assert!(artifact.complete());
    assert_eq!(artifact.header.api_call, format!("GET {path}"));
    assert_eq!(artifact.header.media_type, "application/json");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_id_means_the_container_and_any_other_text_is_refused() {
    let mut world = World::docker().await;
    let container = Container::exited("true");
    let artifact = inspect(&mut world, &container.id[..12]).await.unwrap();
    assert_eq!(artifact.header.source_id, container.id);

    let name = line(docker(&["inspect", "-f", "{{.Name}}", &container.id]));
    for malformed in [
        "",
        &container.id[..11],
        name.trim_start_matches('/'),
        "../../version",
        &"G".repeat(64),
        &"0".repeat(65),
    ] {
        let status = inspect(&mut world, malformed).await.err().unwrap();
        assert_eq!(
            status.code(),
            Code::InvalidArgument,
            "{malformed:?}: {status}"
        );
    }
    for unknown in ["0123456789ab".to_owned(), "f".repeat(64)] {
        for status in [
            inspect(&mut world, &unknown).await.err().unwrap(),
            diff(&mut world, &unknown).await.err().unwrap(),
            world.export(&unknown).await.err().unwrap(),
        ] {
            assert_eq!(status.code(), Code::NotFound, "{status}");
            assert!(
                status.message().contains(NODE) && status.message().contains(&unknown),
                "{status}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exited_containers_are_listed_with_the_kubelets_labels() {
    let mut world = World::docker().await;
    let uid = engine::unique("uid");
    let labels = [
        "io.kubernetes.docker.type=container".to_owned(),
        "io.kubernetes.container.name=nginx".to_owned(),
        "io.kubernetes.pod.name=nginx-abc".to_owned(),
        "io.kubernetes.pod.namespace=shop".to_owned(),
        format!("io.kubernetes.pod.uid={uid}"),
        "annotation.io.kubernetes.container.restartCount=3".to_owned(),
    ];
    let options: Vec<&str> = labels.iter().flat_map(|label| ["--label", label]).collect();
    let container = Container::create(&options, "true");
    docker(&["start", &container.id]);
    docker(&["wait", &container.id]);
    let sandbox = Container::create(
        &[
            "--label",
            "io.kubernetes.docker.type=podsandbox",
            "--label",
            "io.kubernetes.pod.namespace=shop",
            "--label",
            "io.kubernetes.pod.name=nginx-abc",
            "--label",
            &format!("io.kubernetes.pod.uid={uid}"),
        ],
        "true",
    );
    let pod = PodSelector {
        namespace: "shop".into(),
        name: "nginx-abc".into(),
        uid: uid.clone(),
    };
    let request = case(ListContainersRequest {
        pod: Some(pod.clone()),
    });
    let found = world
        .client
        .list_containers(request)
        .await
        .unwrap()
        .into_inner()
        .containers;
    let ids: Vec<&str> = found.iter().map(|one| one.id.as_str()).collect();
    assert_eq!(ids, [&sandbox.id, &container.id], "newest first");
    let nginx = &found[1];
    assert_eq!(nginx.state(), ContainerState::Exited);
    assert_eq!(
        (
            nginx.container_name.as_str(),
            nginx.pod_uid.as_str(),
            nginx.attempt
        ),
        ("nginx", uid.as_str(), 3)
    );
    assert!(!nginx.sandbox && found[0].sandbox);
    assert_eq!(nginx.image, engine::foreign_image());
    assert_eq!(
        nginx.image_id,
        line(docker(&["inspect", "-f", "{{.Image}}", &container.id]))
    );
    assert!(nginx.created.is_some());

    let all = world
        .client
        .list_containers(case(ListContainersRequest { pod: None }))
        .await
        .unwrap();
    assert!(all.into_inner().containers.len() >= 2);
    let other = PodSelector {
        uid: "other".into(),
        ..pod
    };
    let none = world
        .client
        .list_containers(case(ListContainersRequest { pod: Some(other) }))
        .await
        .unwrap();
    assert!(none.into_inner().containers.is_empty());
    let half = PodSelector {
        namespace: "shop".into(),
        ..PodSelector::default()
    };
    let status = world
        .client
        .list_containers(case(ListContainersRequest { pod: Some(half) }))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn info_says_which_node_runtime_and_build_answer() {
    let mut world = World::docker().await;
    let info = world
        .client
        .info(case(InfoRequest {}))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (info.node.as_str(), info.runtime.as_str()),
        (NODE, "docker")
    );
    assert_eq!(
        info.runtime_version,
        line(docker(&["version", "-f", "{{.Server.Version}}"]))
    );
    let executable = std::fs::read("/proc/self/exe").unwrap();
    assert_eq!(info.executable_sha256, Sha256::of(&executable).as_bytes());
    assert!(info.now.is_some() && !info.agent_version.is_empty());
}

async fn inspect(world: &mut World, id: &str) -> Result<Artifact, Status> {
    let request = case(InspectContainerRequest {
        container_id: id.to_owned(),
    });
    Artifact::read(world.client.inspect_container(request).await?.into_inner()).await
}

/// The diff as the text that `docker diff` prints.
async fn diff(world: &mut World, id: &str) -> Result<(String, DiffTrailer), Status> {
    let request = case(DiffRequest {
        container_id: id.to_owned(),
    });
    let mut stream = world.client.diff(request).await?.into_inner();
    let mut text = String::new();
    while let Some(message) = stream.message().await? {
        match message.message.unwrap() {
            Message::Batch(batch) => {
                assert!((1..=4096).contains(&batch.changes.len()));
                for change in batch.changes {
                    let letter = match change.kind() {
                        ChangeKind::Added => 'A',
                        ChangeKind::Changed => 'C',
                        ChangeKind::Deleted => 'D',
                        ChangeKind::Unspecified => panic!("a change without a kind"),
                    };
                    text.push_str(&format!("{letter} {}\n", change.path));
                }
            }
            Message::Trailer(trailer) => {
                assert!(
                    stream.message().await?.is_none(),
                    "a message came after the trailer"
                );
                return Ok((text, trailer));
            }
        }
    }
    panic!("the stream ended without a trailer");
}

/// The engine gives siblings in another order each time it is asked, so the lines are compared.
fn assert_same_lines(text: &str, reference: Vec<u8>) {
    let reference = String::from_utf8(reference).unwrap();
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert!(sorted(text) == sorted(&reference), "the diffs differ");
}
