//! The real agent and a real Docker Engine.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use impound_agent::runtime::docker::Docker;
use impound_agent::{Agent, Disk};
use impound_evidence::{Event, Outcome};
use impound_proto::tls::TlsFiles;
use tokio::net::TcpListener;

use super::fixture::{DIRECTORY, Fixture, NODE, POD, names};

/// Docker's answer to a command, or the end of the test.
fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output();
    let output =
        output.expect("these tests need Docker: install it (Debian: docker.io) and start dockerd");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "docker {arguments:?}: {error}; is dockerd running, and may this user use it?"
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A container as a kubelet would run it; removed at the end.
pub(super) struct Container {
    id: String,
    image: String,
}

impl Container {
    fn run(script: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        shell(root.path());
        let waiting = format!("{script}; echo ready; while true; do sleep 1000; done");
        Self::of(root.path(), &["/bin/sh", "-c", &waiting])
    }

    /// One whose file system is this tree and whose command says "ready" when it is.
    pub(super) fn of(root: &Path, command: &[&str]) -> Self {
        Self::with(root, &[], command)
    }

    /// As [`Container::of`], with more for `docker run`.
    fn with(root: &Path, options: &[&str], command: &[&str]) -> Self {
        let image = format!("impound-test-{}:latest", uuid::Uuid::new_v4().simple());
        import(root, &image);
        let mut arguments = vec!["run".to_owned(), "--detach".to_owned()];
        let labels = [
            ("io.kubernetes.docker.type", "container"),
            ("io.kubernetes.container.name", "app"),
            ("io.kubernetes.pod.namespace", POD.0),
            ("io.kubernetes.pod.name", POD.1),
            ("annotation.io.kubernetes.container.restartCount", "0"),
        ];
        for (label, value) in labels {
            arguments.extend(["--label".to_owned(), format!("{label}={value}")]);
        }
        // Other tests run beside this one: the pod is told by its uid.
        arguments.extend([
            "--label".to_owned(),
            format!("io.kubernetes.pod.uid={image}"),
        ]);
        arguments.extend(options.iter().map(|option| (*option).to_owned()));
        arguments.push(image.clone());
        arguments.extend(command.iter().map(|word| (*word).to_owned()));
        let id = docker(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let container = Self { id, image };
        while !docker(&["logs", &container.id]).contains("ready") {
            std::thread::yield_now();
        }
        container
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let quiet = |arguments: &[&str]| {
            let _ = Command::new("docker")
                .args(arguments)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        };
        quiet(&["rm", "--force", "--volumes", &self.id]);
        quiet(&["image", "rm", "--force", &self.image]);
    }
}

/// A shell and nothing else.
fn shell(root: &Path) {
    let busybox = ["/usr/bin/busybox", "/bin/busybox"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.exists());
    let busybox = busybox.expect("these tests need a static busybox: install busybox-static");
    let bin = root.join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::create_dir(root.join("data")).unwrap();
    std::fs::copy(busybox, bin.join("busybox")).unwrap();
    for applet in ["sh", "sleep", "dd", "echo", "rm"] {
        std::os::unix::fs::symlink("busybox", bin.join(applet)).unwrap();
    }
}

fn import(root: &Path, image: &str) {
    let mut tar = Command::new("tar")
        .arg("-C")
        .arg(root)
        .args(["-c", "."])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let imported = Command::new("docker")
        .args(["import", "-", image])
        .stdin(tar.stdout.take().unwrap())
        .stdout(Stdio::null())
        .status();
    assert!(imported.is_ok_and(|status| status.success()) && tar.wait().unwrap().success());
}

async fn serve(tls: &Path) -> (u16, tokio::task::JoinHandle<()>) {
    let agent = Agent {
        enrolment: None,
        node: NODE.parse().unwrap(),
        files: TlsFiles::in_dir(tls, "controller-ca.crt"),
        runtime: Arc::new(Docker::new("/var/run/docker.sock")),
        disk: Disk::new("/var/lib/docker", 1),
        ready: None,
        allow_isolation: false,
        state_dir: std::env::temp_dir().join(format!("impound-{}", std::process::id())),
        drain: Duration::from_secs(1),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (
        port,
        tokio::spawn(async move { agent.serve(listener, std::future::pending()).await.unwrap() }),
    )
}

pub(super) async fn fixture() -> Fixture {
    let fixture = Fixture::empty().await;
    let (port, server) = serve(&fixture.pki("agents").join(NODE)).await;
    *fixture.nodes.0.lock().unwrap() = port;
    *fixture.server.lock().unwrap() = server;
    fixture
}

pub(super) fn of(
    fixture: &Fixture,
    container: &Container,
) -> impound_controller::collect::CollectionJob {
    let mut job = fixture.job();
    job.target.uid = container.image.clone();
    job
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_container_is_collected_whole_and_leaves_no_image() {
    let container = Container::run(
        "dd if=/dev/urandom of=/data/random bs=1048576 count=20; echo x > /data/note; rm /bin/echo",
    );
    let fixture = fixture().await;
    let mut job = of(&fixture, &container);
    job.pause = true;
    let sealed = fixture.run_job(job).await.unwrap();
    assert_eq!(
        (sealed.outcome, sealed.missing, sealed.warnings),
        (Outcome::Complete, vec![], vec![])
    );
    let manifest = fixture.manifest();
    let layer = format!("{DIRECTORY}/app/layer.tar");
    let record = manifest.artifact(&layer.parse().unwrap()).unwrap();
    assert_eq!(record.method, impound_evidence::Method::Layer);
    assert!(
        record.size > 20 << 20 && record.size < 21 << 20,
        "{}",
        record.size
    );
    assert!(
        record.api_call.contains("upperdir=")
            && record.api_call.contains(&manifest.containers[0].image_id)
    );
    let changes = String::from_utf8(fixture.file(&format!("{layer}.changes.jsonl"))).unwrap();
    let line = |path: &str| {
        let of = changes
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        of.into_iter()
            .find(|line| line["path"] == path)
            .unwrap_or_else(|| panic!("{path}: {changes}"))
    };
    let note = line("/data/note");
    assert_eq!(
        (&note["kind"], &note["file"]["size"]),
        (&"A".into(), &2.into())
    );
    let gone = line("/bin/echo");
    assert_eq!(
        (&gone["kind"], &gone["file"]["whiteout"]),
        (&"D".into(), &true.into())
    );
    assert_eq!(manifest.containers[0].id, container.id);
    assert_eq!(manifest.agents[0].runtime, "docker");
    let (export, image) = names("app", &container.id);

    // Docker gives them in another order each time.
    let sorted = |text: &str| {
        text.lines()
            .map(str::to_owned)
            .collect::<std::collections::BTreeSet<_>>()
    };
    let diff = String::from_utf8(fixture.file(&format!("{DIRECTORY}/app/diff.txt"))).unwrap();
    assert_eq!(sorted(&diff), sorted(&docker(&["diff", &container.id])));
    let inspected: serde_json::Value =
        serde_json::from_slice(&fixture.file(&format!("{DIRECTORY}/app/inspect.json"))).unwrap();
    assert_eq!(inspected["Id"], container.id.as_str());
    // Read live, twice: the container only sleeps, so both reads bring the same members.
    let again = fixture.dir.path().join("again.tar");
    docker(&["export", "--output", again.to_str().unwrap(), &container.id]);
    let stored = fixture
        .collection()
        .join(format!("{DIRECTORY}/app/{export}"));
    let list = |tar: &Path| {
        Command::new("tar")
            .arg("-tvf")
            .arg(tar)
            .output()
            .unwrap()
            .stdout
    };
    assert_eq!(list(&stored), list(&again));
    let reference = format!("{}:web-1", image.strip_suffix(".tar").unwrap());
    let reference = reference.as_str();
    assert_eq!(
        docker(&["image", "ls", "--quiet", reference]),
        "",
        "the image is still on the node"
    );
    let archive = fixture
        .collection()
        .join(format!("{DIRECTORY}/app/{image}"));
    docker(&["load", "--input", archive.to_str().unwrap()]);
    assert_ne!(docker(&["image", "ls", "--quiet", reference]), "");
    docker(&["image", "rm", reference]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_mounted_into_a_real_container_is_named_with_its_place_and_kind_and_is_not_there() {
    let (root, bound) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    shell(root.path());
    let bind = format!("{}:/bound:ro", bound.path().display());
    let write = "for at in /volume /scratch /dev/shm; do echo secret > $at/file; done; echo ready; \
        while true; do sleep 1000; done";
    let container = Container::with(
        root.path(),
        &[
            "--volume",
            "/volume",
            "--volume",
            &bind,
            "--tmpfs",
            "/scratch:size=1m",
        ],
        &["/bin/sh", "-c", write],
    );
    std::fs::write(bound.path().join("file"), "secret").unwrap();
    let fixture = fixture().await;
    let sealed = fixture.run_job(of(&fixture, &container)).await.unwrap();
    assert_eq!(
        (sealed.outcome, sealed.missing),
        (Outcome::Complete, vec![])
    );
    let omissions = fixture.manifest().omissions;
    for expected in [
        "/volume is a volume of the runtime named ".to_owned(),
        format!(
            "/bound is {} of the node, read-only; ",
            bound.path().display()
        ),
        "/scratch is a tmpfs (size=1m); ".to_owned(),
        "/dev/shm is shared memory, a tmpfs of 67108864 bytes; ".to_owned(),
        "/etc/hosts is the runtime's file ".to_owned(),
    ] {
        let expected = format!("Container app: {expected}");
        let named = omissions.iter().any(|text| text.starts_with(&expected));
        assert!(named, "{expected} is not in {omissions:#?}");
    }
    // And it is so: none of the tars has anything of them.
    let (export, _) = names("app", &container.id);
    for tar in [export.as_str(), "layer.tar"] {
        let listing = fixture.file(&format!("{DIRECTORY}/app/{tar}.files.jsonl"));
        let listing = String::from_utf8(listing).unwrap();
        assert!(listing.lines().count() > 2, "{listing}");
        assert!(!listing.contains("/file\""), "{listing}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_middle_of_a_real_export_the_next_run_has_both_parts() {
    let container = Container::run("dd if=/dev/urandom of=/data/random bs=1048576 count=160");
    let fixture = fixture().await;
    let (export, _) = names("app", &container.id);
    let collector = fixture.collector(fixture.store());
    let mut seen = fixture.progress.subscribe();
    let half = seen.wait_for(|progress| {
        progress
            .artifacts
            .iter()
            .any(|artifact| artifact.path.as_str().ends_with(&export) && artifact.bytes > 16 << 20)
    });
    tokio::select! {
        ended = collector.run(of(&fixture, &container), &fixture.progress) => panic!("it ended: {ended:?}"),
        half = half => drop(half.unwrap()),
    }
    while fixture.store().lock(&fixture.id()).await.is_err() {
        tokio::task::yield_now().await;
    }
    let sealed = fixture.run_job(of(&fixture, &container)).await.unwrap();
    assert_eq!(sealed.outcome, Outcome::Complete);
    let manifest = fixture.manifest();
    assert!(manifest.missing.is_empty());
    let size = |name: &str| {
        let path = format!("{DIRECTORY}/app/{name}");
        manifest
            .artifacts
            .iter()
            .find(|record| record.path.as_str() == path)
            .unwrap_or_else(|| panic!("{path}"))
            .size
    };
    let (partial, whole) = (size(&format!("{export}.partial-1")), size(&export));
    assert!(partial > 0 && partial < whole);
    let bytes = fixture.file(&format!("{DIRECTORY}/app/{export}"));
    assert!(bytes.starts_with(&fixture.file(&format!("{DIRECTORY}/app/{export}.partial-1"))));
    assert_eq!(fixture.events(Event::Sealed), 1);
}

#[tokio::test]
async fn a_container_that_is_removed_meanwhile_is_missing_by_name() {
    let container = Container::run("true");
    let fixture = fixture().await;
    let job = of(&fixture, &container);
    let collector = fixture.collector(fixture.store());
    let mut seen = fixture.progress.subscribe();
    let removed = async {
        seen.wait_for(impound_controller::progress::CollectionProgress::quick_done)
            .await
            .unwrap();
        docker(&["rm", "--force", &container.id]);
    };
    let (sealed, ()) = tokio::join!(collector.run(job, &fixture.progress), removed);
    let sealed = sealed.unwrap();
    let manifest = fixture.manifest();
    // The container is small: the export may have won.
    if sealed.outcome == Outcome::Partial {
        assert!(
            manifest.missing.iter().any(|missing| missing
                .reason
                .contains(&format!("there is no container {}", container.id))),
            "{:?}",
            manifest.missing
        );
    }
    assert!(
        manifest
            .artifacts
            .iter()
            .any(|record| record.path.as_str().ends_with("diff.txt"))
    );
}
