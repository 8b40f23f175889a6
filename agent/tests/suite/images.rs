//! Commit, save and remove: the image route, with real images.

use std::collections::HashMap;
use std::io::Write;
use std::process::{Command, Stdio};

use impound_agent::Disk;
use impound_agent::runtime::docker::Docker;
use impound_proto::agent::v1::{
    CommitRequest, CommitResponse, RemoveImageRequest, SaveImageRequest,
};
use tonic::{Code, Status};

use crate::engine::{self, Container, ImageName, SOCKET, docker, line};
use crate::world::{Artifact, CASE, World, case};

#[tokio::test(flavor = "multi_thread")]
async fn a_saved_image_loads_again_and_holds_the_tampered_files() {
    let mut world = World::docker().await;
    let container = Container::running("echo evil > /srv/implant; rm /etc/doomed");
    let image = ImageName::new("saved");
    let mut request = commit_request(&container, &image);
    request
        .labels
        .insert("ticket".into(), "a \"quoted\"\nLABEL smuggled=1".into());
    let committed = commit(&mut world, request).await.unwrap();
    assert_eq!(committed.reference, image.reference());
    assert!(committed.started.is_some() && committed.finished.is_some());
    assert_eq!(format("{{.Id}}", &image.0), committed.image_id);
    assert_eq!(
        format("{{.Comment}}|{{.Author}}", &image.0),
        "why it was taken|alice"
    );
    assert_eq!(
        format("{{index .Config.Labels \"dev.impound.case\"}}", &image.0),
        CASE
    );
    assert_eq!(
        format(
            "{{index .Config.Labels \"dev.impound.source-container\"}}",
            &image.0
        ),
        container.id
    );
    assert_eq!(
        format("{{index .Config.Labels \"ticket\"}}", &image.0),
        "a \"quoted\"\nLABEL smuggled=1"
    );
    assert_eq!(
        format("{{index .Config.Labels \"smuggled\"}}", &image.0),
        ""
    );
    // The container's own configuration is kept, as `docker commit` keeps it.
    assert_eq!(
        format("{{.Config.WorkingDir}}|{{index .Config.Cmd 1}}", &image.0),
        "/srv|-c"
    );

    let saved = save(&mut world, &image.reference()).await.unwrap();
    assert!(saved.complete());
    assert_eq!(saved.header.source_id, committed.image_id);
    let call = &saved.header.api_call;
    assert!(
        call.starts_with("GET /v1.")
            && call.ends_with(&format!("/images/{}/get", image.reference())),
        "{call}"
    );
    // As it was sent, the labels in the body.
    let call = &committed.api_call;
    let (repository, tag) = committed.reference.split_once(':').unwrap();
    let query = format!(
        "/commit?container={}&repo={repository}&tag={tag}&comment=why+it+was+taken&author=alice&pause=",
        container.id
    );
    assert!(
        call.starts_with("POST /v1.") && call.contains(&query),
        "{call}"
    );
    assert!(
        call.contains(r#" {"Labels":{"#) && call.contains(r#""dev.impound.case":"#),
        "{call}"
    );

    assert!(remove(&mut world, &image.reference()).await.unwrap());
    assert!(!image.exists());
    assert!(!remove(&mut world, &image.reference()).await.unwrap());

    let mut load = Command::new("docker")
        .arg("load")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    load.stdin.take().unwrap().write_all(&saved.bytes).unwrap();
    assert!(load.wait().unwrap().success());
    let script = "cat /srv/implant; test -e /etc/doomed || echo gone";
    let printed = docker(&[
        "run",
        "--rm",
        "--network",
        "none",
        &image.0,
        "/bin/sh",
        "-c",
        script,
    ]);
    assert_eq!(line(printed), "evil\ngone");
    // Still running: nothing stopped the suspect.
    assert_eq!(format("{{.State.Status}}", &container.id), "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exited_container_can_be_committed_with_and_without_pause() {
    let mut world = World::docker().await;
    let container = Container::exited("echo evil > /srv/implant");
    for pause in [false, true] {
        let image = ImageName::new("exited");
        let request = CommitRequest {
            pause,
            ..commit_request(&container, &image)
        };
        commit(&mut world, request).await.unwrap();
        assert!(image.exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_never_replaced() {
    let mut world = World::docker().await;
    let container = Container::exited("true");
    let image = ImageName::new("kept");
    let first = commit(&mut world, commit_request(&container, &image))
        .await
        .unwrap();
    let status = commit(&mut world, commit_request(&container, &image))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains(&image.reference()), "{status}");
    assert_eq!(format("{{.Id}}", &image.0), first.image_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_no_agent_made_is_neither_saved_nor_removed() {
    let mut world = World::docker().await;
    let foreign = engine::foreign_image();
    let status = remove(&mut world, foreign).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    let status = save(&mut world, foreign).await.err().unwrap();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    docker(&["image", "inspect", foreign]);

    let status = save(&mut world, "impound-agent-test-none:latest")
        .await
        .err()
        .unwrap();
    assert_eq!(status.code(), Code::NotFound, "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_cases_that_are_malformed_are_refused() {
    let mut world = World::docker().await;
    let container = Container::exited("true");
    let image = ImageName::new("malformed");
    let good = commit_request(&container, &image);
    for bad in [
        CommitRequest {
            repository: String::new(),
            ..good.clone()
        },
        CommitRequest {
            repository: "Upper".into(),
            ..good.clone()
        },
        CommitRequest {
            repository: "../x".into(),
            ..good.clone()
        },
        CommitRequest {
            tag: "a b".into(),
            ..good.clone()
        },
        CommitRequest {
            case_id: String::new(),
            ..good.clone()
        },
        CommitRequest {
            case_id: "a/b".into(),
            ..good.clone()
        },
        CommitRequest {
            container_id: "short".into(),
            ..good.clone()
        },
    ] {
        let status = commit(&mut world, bad.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{bad:?}: {status}");
    }
    for reference in ["", "../../containers/json", "a?b:c", "a b"] {
        assert_eq!(
            remove(&mut world, reference).await.unwrap_err().code(),
            Code::InvalidArgument
        );
        assert_eq!(
            save(&mut world, reference).await.err().unwrap().code(),
            Code::InvalidArgument
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_commit_and_save_before_they_start() {
    engine::require();
    let container = Container::exited("dd if=/dev/zero of=/srv/data bs=1024 count=64 2>/dev/null");
    let image = ImageName::new("full");
    let mut roomy = World::docker().await;
    commit(&mut roomy, commit_request(&container, &image))
        .await
        .unwrap();

    // Everything must stay free, so nothing fits.
    let mut full = World::with_disk(Docker::new(SOCKET), Disk::new("/", 100)).await;
    let other = ImageName::new("full");
    let status = commit(&mut full, commit_request(&container, &other))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().contains("are free"), "{status}");
    assert!(!other.exists());
    let status = save(&mut full, &image.reference()).await.err().unwrap();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
}

fn commit_request(container: &Container, image: &ImageName) -> CommitRequest {
    CommitRequest {
        container_id: container.id.clone(),
        repository: image.0.clone(),
        tag: String::new(),
        message: "why it was taken".into(),
        author: "alice".into(),
        labels: HashMap::new(),
        case_id: CASE.into(),
        pause: false,
    }
}

async fn commit(world: &mut World, request: CommitRequest) -> Result<CommitResponse, Status> {
    Ok(world.client.commit(case(request)).await?.into_inner())
}

async fn save(world: &mut World, reference: &str) -> Result<Artifact, Status> {
    let request = case(SaveImageRequest {
        reference: reference.to_owned(),
    });
    Artifact::read(world.client.save_image(request).await?.into_inner()).await
}

async fn remove(world: &mut World, reference: &str) -> Result<bool, Status> {
    let request = case(RemoveImageRequest {
        reference: reference.to_owned(),
    });
    Ok(world
        .client
        .remove_image(request)
        .await?
        .into_inner()
        .removed)
}

fn format(template: &str, what: &str) -> String {
    let printed = String::from_utf8(docker(&["inspect", "-f", template, what])).unwrap();
    printed.strip_suffix('\n').unwrap().to_owned()
}
