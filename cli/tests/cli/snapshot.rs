//! Output compared with what is written down in `tests/snapshots`.

use std::fs;
use std::path::Path;

/// Fails unless `text` is what the snapshot `name` says. `IMPOUND_WRITE_SNAPSHOTS=1` writes it down.
pub(crate) fn compare(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/snapshots")
        .join(name);
    if std::env::var_os("IMPOUND_WRITE_SNAPSHOTS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!(
            "{}: {error}; write it with IMPOUND_WRITE_SNAPSHOTS=1",
            path.display()
        )
    });
    assert!(
        text == expected,
        "{name} differs.\n--- expected\n{expected}\n--- got\n{text}\n--- if that is better: IMPOUND_WRITE_SNAPSHOTS=1"
    );
}
