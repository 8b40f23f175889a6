//! `impound report` on collections whose contents an attacker chose, and in a real browser.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use impound_evidence::SigningKey;
use serde_json::{Value, json};

use crate::collection::Collection;
use crate::fake::{Ran, impound};

const DIFF: &str = "artifacts/worker2/default_web-5d4f-x7/nginx/diff.jsonl";
const CHANGES: &str = "artifacts/worker2/default_web-5d4f-x7/nginx/x.tar.changes.jsonl";

/// What somebody would write who wants to run in the reader's browser, or to deceive the reader.
const HOSTILE: [&str; 5] = [
    "/tmp/<script>document.title='owned'</script>",
    "/tmp/</code></td></table><img src=http://203.0.113.7/x onerror=alert(1)>",
    "/tmp/\"><svg onload=alert(1)><!--",
    "/tmp/\u{202e}gpj.exe\u{200b}\u{1b}[2J",
    "/tmp/&lt;b&gt; style=\"x\" </style><style>*{display:none}",
];

struct World {
    collection: Collection,
    key: tempfile::NamedTempFile,
    out: tempfile::TempDir,
}

impl World {
    fn new(files: Vec<(&str, Vec<u8>)>) -> Self {
        let secret = tempfile::NamedTempFile::new().unwrap();
        let pair = SigningKey::generate().unwrap();
        fs::write(secret.path(), pair.to_pem().unwrap().as_str()).unwrap();
        let key = tempfile::NamedTempFile::new().unwrap();
        fs::write(key.path(), pair.verifying_key().to_pem().unwrap()).unwrap();
        Self {
            collection: Collection::of(secret.path(), files),
            key,
            out: tempfile::tempdir().unwrap(),
        }
    }

    /// With everything in it that a text can be hostile in.
    fn hostile() -> Self {
        let mut world = Self::new(vec![
            (
                DIFF,
                lines(HOSTILE.map(|path| json!({"kind": "A", "path": path}))),
            ),
            (CHANGES, lines(HOSTILE.map(change))),
            ("containment.json", containment().to_string().into_bytes()),
        ]);
        world.collection.change(|manifest| {
            manifest.reason = HOSTILE.join(" ");
            manifest.requested_by = HOSTILE[0].to_owned();
            manifest.omissions.push(HOSTILE[1].to_owned());
        });
        world
    }

    fn file(&self) -> PathBuf {
        self.out.path().join("report.html")
    }

    fn report(&self, more: &[&str]) -> (Ran, String) {
        let dir = self.collection.directory.path().to_str().unwrap();
        let file = self.file();
        let base = ["report", dir, "--to", file.to_str().unwrap()];
        let ran = Ran::from(impound(&[&base[..], more].concat()).output().unwrap());
        (ran, fs::read_to_string(file).unwrap_or_default())
    }

    fn signed(&self) -> (Ran, String) {
        self.report(&["--key", self.key.path().to_str().unwrap()])
    }
}

fn change(path: &str) -> Value {
    json!({"kind": "A", "path": path, "file": {
        "path": path, "type": "file", "mode": "0755", "size": 1000,
        "mtime": "2026-01-31T02:00:00Z", "link": path, "sha256": "<i>00</i>"
    }})
}

fn lines<const N: usize>(values: [Value; N]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| format!("{value}\n").into_bytes())
        .collect()
}

fn containment() -> Value {
    let hostile = HOSTILE[1];
    json!({"kind": "Quarantine", "status": {
        "phase": "Contained", "message": hostile, "owner": hostile,
        "steps": [
            {"name": "Policy", "state": "Done", "message": hostile, "started": "2026-01-31T03:00:00.100000Z", "finished": "2026-01-31T03:00:00.300000Z"},
            {"name": "<u>x</u>", "state": "<u>y</u>", "started": "2026-01-31T03:00:01Z", "finished": "no time at all"},
        ],
        "facts": [
            {"name": "OwnerReleased", "state": "True", "message": "no controller owns the pod"},
            {"name": "TrafficBlocked", "state": "Unverified", "message": hostile},
            {"name": "NoEndpoints", "state": "False", "message": hostile},
        ],
        "warnings": [hostile],
        "evictions": [{"namespace": "shop", "pod": hostile, "uid": "u", "state": "Gone", "message": "", "tried": "2026-01-31T03:00:02Z"}],
        "credentials": [{"kind": "Token", "name": hostile, "grants": hostile, "revoke": "rm -rf"}],
        "drift": [{"time": "2026-01-31T03:00:03Z", "reason": "EvidenceLoss", "what": hostile}],
    }})
}

#[test]
fn nothing_in_the_evidence_becomes_more_than_text() {
    let (ran, html) = World::hostile().signed();
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    for mark in [
        "<script",
        "<img",
        "<svg onload",
        "<!--",
        "<i>",
        "<u>",
        "<b>",
    ] {
        assert!(!html.contains(mark), "{mark} came through");
    }
    assert_eq!(html.matches("<style>").count(), 1);
    let steers = |c: &char| (c.is_control() && *c != '\n') || "\u{202e}\u{200b}\u{1b}".contains(*c);
    assert_eq!(html.chars().find(steers), None);
    assert!(html.contains("\\u{202e}gpj.exe\\u{200b}\\u{1b}[2J"));
    assert!(html.contains("default-src 'none'; style-src 'sha256-"));
    // Nothing to load: no address at all but those in the text.
    for attribute in ["src=\"", "href=\"http", "url(", "@import"] {
        assert!(!html.contains(attribute), "{attribute}");
    }
}

#[test]
fn the_report_says_what_was_checked_with_which_result_and_exits_as_verify_does() {
    let world = World::hostile();
    let (ran, html) = world.signed();
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        html.contains("Intact and complete")
            && html.contains("✗ seen NOT to be so")
            && html.contains("? not proved")
    );
    // Never overwritten.
    let (ran, _) = world.signed();
    assert_eq!(
        (ran.code, ran.err.contains("the report can't be written")),
        (2, true),
        "{ran:?}"
    );

    let mut world = World::hostile();
    world.collection.make_partial();
    let (ran, html) = world.signed();
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(
        html.contains("but not complete")
            && html.contains("the container was gone when it was asked for")
    );

    let world = World::hostile();
    let (ran, html) = world.report(&[]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        html.contains("? Not verified") && ran.out.contains("NOT VERIFIED"),
        "{ran:?}"
    );

    // What was changed is named, and its contents are not shown.
    let world = World::hostile();
    let changed = world.collection.read(CHANGES).unwrap().to_ascii_lowercase();
    world.collection.write(CHANGES, &changed);
    let (ran, html) = world.signed();
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        html.contains("✗ NOT INTACT")
            && html.contains("is not what was signed, so it is not shown"),
        "{ran:?}"
    );
    assert!(!html.contains("gpj.exe\\u{200b}\\u{1b}[2J</code>"));
}

#[test]
fn a_report_stays_small_however_much_was_changed() {
    let many: Vec<u8> = (0..100_000)
        .flat_map(|n| format!("{}\n", change(&format!("/srv/d{}/file-{n}", n % 5000))).into_bytes())
        .collect();
    let world = World::new(vec![(DIFF, b"".to_vec()), (CHANGES, many)]);
    let (ran, html) = world.signed();
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(html.len() < 512 << 10, "{} bytes", html.len());
    for said in [
        "100000 changes",
        "The list is too long for a page",
        "more directories",
        "The newest files",
    ] {
        assert!(html.contains(said), "{said}");
    }
}

/// Debian's chromium, which may load nothing.
fn chromium(directory: &Path, more: &[&str], page: &Path) -> Vec<u8> {
    let mut command = Command::new("chromium");
    command
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
        ])
        .args([
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ])
        .arg("--host-resolver-rules=MAP * ~NOTFOUND")
        .arg(format!(
            "--user-data-dir={}",
            directory.join("profile").display()
        ))
        .args(more)
        .arg(format!("file://{}", page.display()))
        .current_dir(directory);
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("chromium (Debian package chromium) is needed: {error}"));
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

#[test]
fn a_real_browser_shows_the_report_runs_nothing_and_asks_nobody() {
    let world = World::hostile();
    assert_eq!(world.signed().0.code, 0);
    let out = world.out.path();
    let log = out.join("net.json");
    let dump = chromium(
        out,
        &[&format!("--log-net-log={}", log.display()), "--dump-dom"],
        &world.file(),
    );
    let dom = String::from_utf8(dump).unwrap();
    // As the browser understood it, with scripts allowed, so that one in the page would have run: the landmarks are there, and no element that we did not write.
    for landmark in [
        "<header>",
        "<nav aria-label=\"Contents\">",
        "<main id=\"content\">",
        "<footer>",
        "<html lang=\"en\">",
    ] {
        assert_eq!(dom.matches(landmark).count(), 1, "{landmark}");
    }
    for foreign in [
        "<script",
        "<img",
        "<iframe",
        "<!--",
        "onload=\"",
        "onerror=\"",
    ] {
        assert!(
            !dom.contains(foreign),
            "{foreign} is in what the browser made of it"
        );
    }
    assert!(dom.contains("<title>Evidence report: INC-7, web-5d4f-x7</title>"));
    let rows = dom.matches("<th scope=\"").count();
    assert!(
        rows > 20 && !dom.contains("<th>"),
        "every head of a table says what it is the head of"
    );
    assert_eq!(
        dom.matches("<svg").count(),
        dom.matches("role=\"img\"").count()
    );
    // What it asked the network for.
    let log = fs::read_to_string(log).unwrap();
    assert!(
        !log.contains("203.0.113.7"),
        "the browser asked for an address in the evidence"
    );
    let picture = out.join("picture.png");
    let more = [
        format!("--screenshot={}", picture.display()),
        "--window-size=1280,4000".to_owned(),
    ];
    chromium(out, &more.each_ref().map(String::as_str), &world.file());
    assert!(
        fs::metadata(picture).unwrap().len() > 50_000,
        "an empty page"
    );
}
