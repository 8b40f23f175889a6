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
        (
            ran.code,
            ran.err
                .contains("is there already: remove it, or choose another --to")
        ),
        (2, true),
        "{ran:?}"
    );
    // Somebody was to vouch for it and does not.
    let world = World::hostile();
    let ada = tempfile::NamedTempFile::new().unwrap();
    let pair = SigningKey::generate().unwrap();
    fs::write(ada.path(), pair.verifying_key().to_pem().unwrap()).unwrap();
    let (ran, html) = world.report(&[
        "--key",
        world.key.path().to_str().unwrap(),
        "--countersigned-by",
        ada.path().to_str().unwrap(),
    ]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(html.contains("its key was to have vouched for this"));

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

/// On paper, with scripting off in the browser: every text of the page is there, and all of it on the paper.
#[test]
fn printed_without_scripts_the_report_is_whole_and_nothing_is_cut_off() {
    const REAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../evidence/tests/real");
    let hostile = World::hostile();
    assert_eq!(hostile.signed().0.code, 0);
    let real = tempfile::tempdir().unwrap();
    let page = real.path().join("report.html");
    let (collection, key) = (format!("{REAL}/collection"), format!("{REAL}/evidence.pub"));
    let arguments = [
        "report",
        &collection,
        "--key",
        &key,
        "--to",
        page.to_str().unwrap(),
    ];
    assert!(impound(&arguments).status().unwrap().success());
    // Scripting is off.
    let control = real.path().join("control.html");
    let script =
        "<p id=a>without</p><script>document.getElementById('a').textContent='with'</script>";
    fs::write(&control, script).unwrap();
    let printed = text_of(&print_without_scripts(real.path(), &control), "-raw");
    assert_eq!(printed.trim(), "without");
    for (directory, page) in [
        (real.path(), page.clone()),
        (hostile.out.path(), hostile.file()),
    ] {
        let pdf = print_without_scripts(directory, &page);
        let html = fs::read_to_string(&page).unwrap();
        let main = html.split_once("<header>").unwrap().1;
        // Not printed: the links to the sections. Not shown: what pictures say to those who can't see them.
        let mut main = without(main, "<nav ", "</nav>");
        for (from, to) in [("<title", "</title>"), ("<desc", "</desc>")] {
            main = without(&main, from, to);
        }
        let printed = squeezed(&text_of(&pdf, "-raw"));
        let mut texts = 0;
        for text in main.split('<').filter_map(|tag| tag.split_once('>')) {
            let text = ["&lt;<", "&gt;>", "&quot;\"", "&amp;&"].iter().fold(
                squeezed(text.1),
                |text, entity| {
                    let (entity, character) = entity.split_at(entity.find(';').unwrap() + 1);
                    text.replace(entity, character)
                },
            );
            assert!(
                printed.contains(&text),
                "{text:?} is not in {}",
                pdf.display()
            );
            texts += usize::from(!text.is_empty());
        }
        assert!(texts > 100, "{texts} texts");
        // Every word lies within the page: xMin, yMin, xMax, yMax in points.
        let (mut pages, mut words, mut size) = (0, 0, (0.0, 0.0));
        for line in text_of(&pdf, "-bbox").lines() {
            let numbers: Vec<f64> = line
                .split('"')
                .filter_map(|part| part.parse().ok())
                .collect();
            match (line.trim().split_once(' '), numbers.as_slice()) {
                (Some(("<page", _)), [width, height]) => {
                    pages += 1;
                    size = (*width, *height);
                }
                (Some(("<word", _)), [left, top, right, bottom]) => {
                    words += 1;
                    let inside = *left > 30.0 && *top > 30.0;
                    let inside = inside && *right < size.0 - 30.0 && *bottom < size.1 - 30.0;
                    assert!(inside, "beyond the margin of page {pages}: {line}");
                }
                _ => {}
            }
        }
        assert!(pages > 1 && words > 500, "{pages} pages with {words} words");
    }
}

/// The page as a PDF, by a browser whose user has turned scripting off.
fn print_without_scripts(directory: &Path, page: &Path) -> PathBuf {
    let profile = directory.join("profile/Default");
    fs::create_dir_all(&profile).unwrap();
    let off = json!({"profile": {"default_content_setting_values": {"javascript": 2}}});
    fs::write(profile.join("Preferences"), off.to_string()).unwrap();
    let pdf = page.with_extension("pdf");
    let to = format!("--print-to-pdf={}", pdf.display());
    chromium(directory, &["--no-pdf-header-footer", &to], page);
    pdf
}

fn squeezed(text: &str) -> String {
    text.split_whitespace().collect()
}

/// `text` without what stands between two marks.
fn without(text: &str, from: &str, to: &str) -> String {
    let mut parts = text.split(from);
    let mut rest = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        rest.push_str(part.split_once(to).unwrap().1);
    }
    rest
}

/// What is written in a PDF, by poppler.
fn text_of(pdf: &Path, how: &str) -> String {
    let output = Command::new("pdftotext")
        .arg(how)
        .arg(pdf)
        .arg("-")
        .output();
    let output = output.unwrap_or_else(|error| {
        panic!("pdftotext (Debian package poppler-utils) is needed: {error}")
    });
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What changed is described as soon as a list of changes lies beside the diff.
#[test]
fn the_report_of_a_real_collection_describes_what_changed() {
    const REAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../evidence/tests/real");
    let out = tempfile::tempdir().unwrap();
    let page = out.path().join("report.html");
    let (collection, key) = (format!("{REAL}/collection"), format!("{REAL}/evidence.pub"));
    let arguments = [
        "report",
        &collection,
        "--key",
        &key,
        "--to",
        page.to_str().unwrap(),
    ];
    assert!(impound(&arguments).status().unwrap().success());
    let html = fs::read_to_string(page).unwrap();
    let row = html
        .split("<tr>")
        .find(|row| row.contains("/tmp/implant</code>"))
        .unwrap();
    for said in [
        "A added",
        "64.0 KiB",
        "2026-11-26 14:10:39",
        "3663f15eb721324b9cf10adc4c4f1d1ab63b35108761ffdfa001d8ae54687341",
    ] {
        assert!(row.contains(said), "{said} is not in {row}");
    }
    assert!(!html.contains("not described") && !html.contains(">: listings<"));
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
