//! The real Docker Engine of this machine, and containers of the tests in it.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

pub const SOCKET: &str = "/var/run/docker.sock";

/// Image with a static busybox and nothing else.
const IMAGE: &str = "impound-agent-test/busybox:1";

const BUSYBOX: &str = "/bin/busybox";

/// Fails with what to do if the engine or busybox is not there, and makes the image once.
pub fn require() {
    let answers = Command::new("docker")
        .args(["version", "--format", "{{.Server.Version}}"])
        .output()
        .unwrap_or_else(|error| {
            panic!("cannot run docker ({error}): install it, e.g. `apt-get install docker.io`")
        });
    assert!(
        answers.status.success(),
        "the Docker Engine does not answer at {SOCKET}: start it, e.g. `dockerd >/tmp/dockerd.log 2>&1 &` as \
         root ({})",
        String::from_utf8_lossy(&answers.stderr).trim()
    );
    let lock = File::create(std::env::temp_dir().join("impound-agent-test.lock")).unwrap();
    lock.lock().unwrap();
    if Command::new("docker")
        .args(["image", "inspect", IMAGE])
        .output()
        .unwrap()
        .status
        .success()
    {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    make_root(dir.path());
    let tar = Command::new("tar")
        .arg("-C")
        .arg(dir.path())
        .args(["-c", "."])
        .output()
        .unwrap();
    assert!(tar.status.success());
    let mut import = Command::new("docker")
        .args([
            "import",
            "-c",
            "CMD [\"/bin/sh\"]",
            "-c",
            "WORKDIR /srv",
            "-",
            IMAGE,
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    import.stdin.take().unwrap().write_all(&tar.stdout).unwrap();
    assert!(import.wait().unwrap().success());
}

fn make_root(dir: &Path) {
    let static_elf = Command::new("file").args(["-L", BUSYBOX]).output();
    assert!(
        Path::new(BUSYBOX).exists(),
        "there is no {BUSYBOX}: install a static one, e.g. `apt-get install busybox-static`"
    );
    if let Ok(kind) = static_elf {
        let kind = String::from_utf8_lossy(&kind.stdout).into_owned();
        assert!(
            !kind.contains("dynamically linked"),
            "{BUSYBOX} is not static: install busybox-static"
        );
    }
    for sub in ["bin", "etc", "srv", "tmp"] {
        std::fs::create_dir(dir.join(sub)).unwrap();
    }
    std::fs::copy(BUSYBOX, dir.join("bin/busybox")).unwrap();
    for applet in [
        "sh", "cat", "dd", "echo", "ln", "mkdir", "rm", "sleep", "chmod", "true",
    ] {
        std::os::unix::fs::symlink("busybox", dir.join("bin").join(applet)).unwrap();
    }
    std::fs::write(dir.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
    std::fs::write(dir.join("etc/doomed"), "to be deleted\n").unwrap();
}

/// Runs `docker` and gives what it printed.
pub fn docker(args: &[&str]) -> Vec<u8> {
    let output = attempt(args);
    assert!(
        output.status.success(),
        "docker {args:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    output.stdout
}

pub fn attempt(args: &[&str]) -> Output {
    Command::new("docker").args(args).output().unwrap()
}

pub fn line(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap().trim().to_owned()
}

/// A name that no other test, in this process or another, uses.
pub fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("impound-agent-test-{what}-{}-{number}", std::process::id())
}

/// A container that is removed when the test ends.
pub struct Container {
    pub id: String,
}

impl Container {
    /// Runs `script` in a new container and waits until it has ended.
    pub fn exited(script: &str) -> Self {
        let container = Self::create(&[], script);
        docker(&["start", &container.id]);
        assert_eq!(
            line(docker(&["wait", &container.id])),
            "0",
            "the container's script failed"
        );
        container
    }

    /// A container that runs `script` and then sleeps; returns once the script is done.
    pub fn running(script: &str) -> Self {
        let container = Self::create(&[], &format!("({script}); echo done; exec sleep 3600"));
        docker(&["start", &container.id]);
        while !String::from_utf8_lossy(&docker(&["logs", &container.id])).contains("done") {
            assert_eq!(
                line(docker(&[
                    "inspect",
                    "-f",
                    "{{.State.Running}}",
                    &container.id
                ])),
                "true",
                "the container ended before its script was done"
            );
        }
        container
    }

    /// A container that was never started.
    pub fn create(options: &[&str], script: &str) -> Self {
        let name = unique("container");
        let mut args = vec!["create", "--network", "none", "--name", &name];
        args.extend_from_slice(options);
        args.extend_from_slice(&[IMAGE, "/bin/sh", "-c", script]);
        Self {
            id: line(docker(&args)),
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        attempt(&["rm", "-f", &self.id]);
    }
}

/// An image name that is removed when the test ends.
pub struct ImageName(pub String);

impl ImageName {
    pub fn new(what: &str) -> Self {
        Self(unique(what))
    }

    pub fn reference(&self) -> String {
        format!("{}:latest", self.0)
    }

    pub fn exists(&self) -> bool {
        attempt(&["image", "inspect", &self.0]).status.success()
    }
}

impl Drop for ImageName {
    fn drop(&mut self) {
        attempt(&["rmi", "-f", &self.0]);
    }
}

/// The test image, which no agent made.
pub fn foreign_image() -> &'static str {
    IMAGE
}

/// What the engine itself answers, without any client library.
pub fn http_get(path: &str) -> Vec<u8> {
    use std::io::Read;
    let mut socket = std::os::unix::net::UnixStream::connect(SOCKET).unwrap();
    write!(socket, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    assert!(
        answer.starts_with(b"HTTP/1.0 200"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    let head = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .unwrap()
        + 4;
    answer.split_off(head)
}
