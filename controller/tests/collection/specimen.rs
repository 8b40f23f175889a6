//! A small real collection: a real container, agent and Docker Engine, sealed by the controller's own code.
//! With IMPOUND_REGENERATE=1 it becomes `evidence/tests/real`, which the evidence crate's tests change in
//! ten thousand ways.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use impound_evidence::{DirSource, Outcome, verify};

use super::docker::{Container, fixture, of};

/// A program of a few kilobytes that runs FROM scratch: leaves a file with a hole behind its bytes,
/// changes one, removes one, says so, and waits.
const TAMPERER: &str = r#"
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
static long call(long n, long a, long b, long c, long d) {
    long result;
#if defined(__x86_64__)
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall" : "=a"(result) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = n, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c, x3 __asm__("x3") = d;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    result = x0;
#endif
    return result;
}
static void put(const char *path, int flags, const char *text, long length) {
    long file = call(SYS_openat, AT_FDCWD, (long)path, O_WRONLY | flags, 0755);
    call(SYS_write, file, (long)text, length, 0);
    if (flags & O_CREAT) call(SYS_ftruncate, file, 1 << 16, 0, 0);
    call(SYS_close, file, 0, 0, 0);
}
void _start(void) {
    put("/tmp/implant", O_CREAT, "\177ELF implant\n", 13);
    put("/etc/passwd", O_APPEND, "eve:x:0:0::/:\n", 14);
    call(SYS_unlinkat, AT_FDCWD, (long)"/etc/motd", 0, 0);
    call(SYS_write, 1, (long)"ready\n", 6, 0);
    for (;;) call(SYS_ppoll, 0, 0, 0, 0);
}
"#;

fn tree(root: &Path) {
    for directory in ["etc", "tmp"] {
        std::fs::create_dir(root.join(directory)).unwrap();
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0::/:\n").unwrap();
    std::fs::write(root.join("etc/motd"), "welcome\n").unwrap();
    let mut cc = Command::new("cc")
        .args([
            "-x",
            "c",
            "-",
            "-Os",
            "-static",
            "-nostdlib",
            "-ffreestanding",
            "-fno-stack-protector",
        ])
        .args(["-Wl,--build-id=none", "-s", "-o"])
        .arg(root.join("tamper"))
        .stdin(Stdio::piped())
        .spawn()
        .expect("this test needs a C compiler, as Rust itself does");
    std::io::Write::write_all(&mut cc.stdin.take().unwrap(), TAMPERER.as_bytes()).unwrap();
    assert!(cc.wait().unwrap().success());
}

fn size(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).unwrap();
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            match entry.file_type().unwrap().is_dir() {
                true => size(&entry.path()),
                false => entry.metadata().unwrap().len(),
            }
        })
        .sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_real_collection_is_intact_for_us_and_for_the_script() {
    let root = tempfile::tempdir().unwrap();
    tree(root.path());
    let container = Container::of(root.path(), &["/tamper"]);
    let fixture = fixture().await;
    let sealed = fixture.run_job(of(&fixture, &container)).await.unwrap();
    assert_eq!(
        (sealed.outcome, sealed.missing),
        (Outcome::Complete, vec![])
    );
    let collection = fixture.collection();
    assert!(size(&collection) < 2 << 20, "{} bytes", size(&collection));
    let real = PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../evidence/tests/real"
    ));
    if std::env::var_os("IMPOUND_REGENERATE").is_some() {
        let _ = std::fs::remove_dir_all(real.join("collection"));
        let copied = Command::new("cp")
            .arg("-r")
            .arg(&collection)
            .arg(real.join("collection"))
            .status();
        assert!(copied.unwrap().success());
        std::fs::write(
            real.join("evidence.key"),
            fixture.key.to_pem().unwrap().as_bytes(),
        )
        .unwrap();
        let key = fixture.key.verifying_key();
        std::fs::write(real.join("evidence.pub"), key.to_pem().unwrap()).unwrap();
    }
    let key = root.path().join("evidence.pub");
    std::fs::write(&key, fixture.key.verifying_key().to_pem().unwrap()).unwrap();
    let verdict = verify(
        &DirSource::open(&collection).unwrap(),
        &[fixture.key.verifying_key().clone()],
    );
    assert!(verdict.complete(), "{:?}", verdict.problems);
    let script = Command::new("bash")
        .arg(collection.join("verify.sh"))
        .args([&collection, &key])
        .output()
        .unwrap();
    assert!(
        script.status.success(),
        "{}",
        String::from_utf8_lossy(&script.stderr)
    );
}
