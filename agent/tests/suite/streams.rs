//! Streams that do not end well, clients that do not read, and the end of the agent.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use impound_agent::runtime::docker::Docker;
use impound_proto::agent::v1::artifact_message::Message;
use impound_proto::agent::v1::diff_message::Message as DiffPart;
use impound_proto::agent::v1::{
    CommitRequest, DiffRequest, ExportRequest, InfoRequest, InspectContainerRequest,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::Notify;
use tonic::Code;

use crate::fake::{Export, Fake};
use crate::world::{Artifact, CASE, World, case};

/// A tar with one file, as a runtime would send it.
fn tar() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), vec![7; 100_000]).unwrap();
    let tar = std::process::Command::new("tar")
        .arg("-C")
        .arg(dir.path())
        .args(["-c", "file"])
        .output()
        .unwrap();
    assert!(tar.status.success());
    tar.stdout
}

#[tokio::test]
async fn a_tar_that_ends_without_its_end_blocks_is_incomplete() {
    let whole = tar();
    // Cut in the middle of the file, between its contents and the end, and in the end blocks.
    for cut in [0, 50_000, 100_864, 101_376] {
        let fake = Fake::new(Export::Bytes(Bytes::from(whole[..cut].to_vec())));
        let id = fake.id().to_owned();
        let artifact = World::start(fake).await.export(&id).await.unwrap();
        assert_eq!(artifact.bytes, whole[..cut]);
        assert!(!artifact.complete(), "{cut} bytes were called complete");
    }
    let fake = Fake::new(Export::Bytes(Bytes::from(whole)));
    let id = fake.id().to_owned();
    assert!(
        World::start(fake)
            .await
            .export(&id)
            .await
            .unwrap()
            .complete()
    );
}

#[tokio::test]
async fn a_body_that_breaks_off_ends_with_data_loss_and_never_with_a_trailer() {
    // Even if what came happens to be a whole tar.
    let whole = Bytes::from(tar());
    let fake = Fake::new(Export::Breaks(whole.clone()));
    let id = fake.id().to_owned();
    let mut world = World::start(fake).await;
    let mut stream = world
        .client
        .export(case(ExportRequest { container_id: id }))
        .await
        .unwrap()
        .into_inner();
    let mut came = Vec::new();
    let status = loop {
        match stream.message().await {
            Ok(Some(message)) => match message.message.unwrap() {
                Message::Header(_) => {}
                Message::Chunk(chunk) => came.extend_from_slice(&chunk.data),
                Message::Trailer(_) => panic!("a broken stream got a trailer"),
            },
            Ok(None) => panic!("a broken stream ended well"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::DataLoss);
    assert!(status.message().contains("connection reset"), "{status}");
    assert_eq!(came, whole, "what was read before is evidence and is sent");
}

#[tokio::test]
async fn a_diff_that_breaks_off_ends_with_data_loss_and_never_with_a_trailer() {
    let fake = Fake::new(Export::Endless);
    let request = case(DiffRequest {
        container_id: fake.id().to_owned(),
    });
    let mut world = World::start(fake).await;
    let mut stream = world.client.diff(request).await.unwrap().into_inner();
    let mut changes = 0;
    let status = loop {
        match stream.message().await {
            Ok(Some(message)) => match message.message.unwrap() {
                DiffPart::Batch(batch) => changes += batch.changes.len(),
                DiffPart::Trailer(_) => panic!("a broken stream got a trailer"),
            },
            Ok(None) => panic!("a broken stream ended well"),
            Err(status) => break status,
        }
    };
    assert_eq!((status.code(), changes), (Code::DataLoss, 4096));
}

#[tokio::test]
async fn an_engine_that_dies_in_the_middle_of_an_export_is_data_loss() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("docker.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let id = "cd".repeat(32);
    let list = format!(r#"[{{"Id":"{id}","Created":1}}]"#);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let list = list.clone();
            tokio::spawn(async move {
                let mut request = vec![0; 4096];
                let read = stream.read(&mut request).await.unwrap();
                let line = String::from_utf8_lossy(&request[..read]).into_owned();
                let answer = if line.contains("/export") {
                    // One chunk of a chunked body, and then the engine is gone.
                    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n400\r\n".to_owned()
                        + &"\0".repeat(1024)
                        + "\r\n"
                } else {
                    let body = match line.contains("/version") {
                        true => r#"{"Version":"1"}"#,
                        false => list.as_str(),
                    };
                    format!(
                        "HTTP/1.1 200 OK\r\napi-version: 1.41\r\ncontent-length: {}\r\n\r\n{body}",
                        body.len()
                    )
                };
                stream.write_all(answer.as_bytes()).await.unwrap();
            });
        }
    });
    let mut world = World::start(Docker::new(socket)).await;
    // The bytes before are two zero blocks, which would be a whole, if empty, tar.
    let status = world.export(&id).await.err().unwrap();
    assert_eq!(status.code(), Code::DataLoss, "{status}");
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_unavailable_and_the_answer_says_where_it_was_looked_for() {
    let mut world = World::start(Docker::new("/nonexistent/docker.sock")).await;
    for status in [
        world.client.info(case(InfoRequest {})).await.unwrap_err(),
        world.export(&"ab".repeat(32)).await.err().unwrap(),
    ] {
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(
            status.message().contains("/nonexistent/docker.sock"),
            "{status}"
        );
    }
}

#[tokio::test]
async fn a_description_that_is_no_json_document_is_incomplete() {
    let fake = Fake::new(Export::Endless);
    let request = case(InspectContainerRequest {
        container_id: fake.id().to_owned(),
    });
    let mut world = World::start(fake).await;
    let stream = world
        .client
        .inspect_container(request)
        .await
        .unwrap()
        .into_inner();
    assert!(!Artifact::read(stream).await.unwrap().complete());
}

#[tokio::test]
async fn an_ambiguous_id_is_refused_with_what_it_could_mean() {
    let mut fake = Fake::new(Export::Endless);
    let (one, two) = (
        "ab".repeat(32),
        format!("{}{}", "ab".repeat(10), "cd".repeat(22)),
    );
    fake.ids = vec![one.clone(), two.clone()];
    let mut world = World::start(fake).await;
    let request = case(InspectContainerRequest {
        container_id: "ab".repeat(6),
    });
    let status = world.client.inspect_container(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(
        status.message().contains(&one) && status.message().contains(&two),
        "{status}"
    );
    let request = case(InspectContainerRequest { container_id: two });
    assert!(world.client.inspect_container(request).await.is_ok());
}

#[tokio::test]
async fn a_client_that_stops_reading_stops_the_runtimes_stream_and_memory_stays_flat() {
    let fake = Fake::new(Export::Endless);
    let observed = Arc::clone(&fake.observed);
    let request = case(ExportRequest {
        container_id: fake.id().to_owned(),
    });
    let mut world = World::start(fake).await;
    let mut stream = world.client.export(request).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();

    // The client's window fills, then nothing moves any more: what was pulled bounds what is held.
    let mut pulled = 0;
    let mut quiet = 0;
    while quiet < 5 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = observed.pulled.load(Ordering::SeqCst);
        quiet = if now == pulled && now > 0 {
            quiet + 1
        } else {
            0
        };
        pulled = now;
        assert!(
            pulled < 16 << 20,
            "{pulled} bytes were read for a client that does not read"
        );
    }
    assert_eq!(observed.dropped.load(Ordering::SeqCst), 0);

    // It reads on: the stream goes on.
    let mut more = 0;
    while more < 32 << 20 {
        match stream.message().await.unwrap().unwrap().message.unwrap() {
            Message::Chunk(chunk) => more += chunk.data.len(),
            _ => panic!("expected chunks"),
        }
    }

    // It leaves: the runtime's stream is dropped.
    drop(stream);
    let gone = async {
        while observed.dropped.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone)
        .await
        .expect("the runtime's stream goes on");
}

#[tokio::test]
async fn streams_that_nobody_reads_do_not_starve_other_calls_on_the_connection() {
    let fake = Fake::new(Export::Endless);
    let observed = Arc::clone(&fake.observed);
    let id = fake.id().to_owned();
    let mut world = World::start(fake).await;
    let mut unread = Vec::new();
    for _ in 0..4 {
        let request = case(ExportRequest {
            container_id: id.clone(),
        });
        unread.push(world.client.export(request).await.unwrap().into_inner());
    }
    let mut pulled = 0;
    let mut quiet = 0;
    while quiet < 5 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = observed.pulled.load(Ordering::SeqCst);
        quiet = if now == pulled && now > 0 {
            quiet + 1
        } else {
            0
        };
        pulled = now;
    }
    let request = case(InspectContainerRequest { container_id: id });
    let inspected = async {
        let stream = world
            .client
            .inspect_container(request)
            .await
            .unwrap()
            .into_inner();
        Artifact::read(stream).await.unwrap()
    };
    tokio::time::timeout(Duration::from_secs(10), inspected)
        .await
        .expect("the connection is starved");
}

#[tokio::test]
async fn a_fifth_export_at_the_same_time_is_refused_and_possible_later() {
    let told = Arc::new(Notify::new());
    let fake = Fake::new(Export::Waits(Arc::clone(&told)));
    let request = ExportRequest {
        container_id: fake.id().to_owned(),
    };
    let mut world = World::start(fake).await;
    let mut running = Vec::new();
    for _ in 0..4 {
        running.push(
            world
                .client
                .export(case(request.clone()))
                .await
                .unwrap()
                .into_inner(),
        );
    }
    let status = world
        .client
        .export(case(request.clone()))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    told.notify_one();
    // Whichever got the word ends; the others are given up.
    drop(running);
    let again = async {
        while world.client.export(case(request.clone())).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), again)
        .await
        .expect("no slot came free");
}

#[tokio::test]
async fn commits_run_one_at_a_time() {
    let fake = Fake::new(Export::Endless);
    let observed = Arc::clone(&fake.observed);
    let id = fake.id().to_owned();
    let world = World::start(fake).await;
    let commits = (0..8).map(|number| {
        let mut client = world.client.clone();
        let request = CommitRequest {
            container_id: id.clone(),
            repository: format!("compromised-{number}"),
            case_id: CASE.into(),
            ..CommitRequest::default()
        };
        async move { client.commit(case(request)).await }
    });
    for result in futures::future::join_all(commits).await {
        result.unwrap();
    }
    assert_eq!(*observed.commits.lock().unwrap(), (0, 1));
}

#[tokio::test]
async fn a_running_stream_ends_well_when_the_agent_is_told_to_stop() {
    let told = Arc::new(Notify::new());
    let fake = Fake::new(Export::Waits(Arc::clone(&told)));
    let request = case(ExportRequest {
        container_id: fake.id().to_owned(),
    });
    let mut world = World::start(fake).await;
    let stream = world.client.export(request).await.unwrap().into_inner();
    let stopped = world.stop();
    // No new connection once it was told.
    let refused = async {
        while tokio::net::TcpStream::connect(world.address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), refused)
        .await
        .expect("it still accepts");
    told.notify_one();
    assert!(Artifact::read(stream).await.unwrap().complete());
    stopped.await.unwrap();
}
