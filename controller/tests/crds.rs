//! The checked-in definitions and admission policies are those of the code.

#![allow(clippy::expect_used, reason = "a test")]

use std::path::Path;

use impound_controller::contain::guard;
use impound_controller::contain::settings::Settings;
use impound_controller::resources::{definitions, documents, yaml};

#[test]
fn checked_in_definitions_match_the_types() {
    for definition in definitions() {
        let name = definition
            .metadata
            .name
            .clone()
            .expect("a definition has a name");
        let generated = yaml(&definition).expect("a definition is serialisable");
        compare(&format!("crds/{name}.yaml"), &generated);
    }
}

#[test]
fn checked_in_admission_policies_match_the_code() {
    let guard_policies = guard::guard(guard::CONTROLLER, &Settings::default());
    for (file, objects) in [
        ("guard.yaml", guard_policies),
        ("no-access.yaml", guard::access(guard::CONTROLLER)),
    ] {
        let generated = documents(&objects).expect("policies are serialisable");
        compare(&format!("admission/{file}"), &generated);
    }
}

fn compare(file: &str, generated: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(file);
    if std::env::var_os("IMPOUND_REGENERATE").is_some() {
        std::fs::write(&path, generated).expect("deploy is writable");
    }
    let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        checked_in == generated,
        "{} is out of date: run `IMPOUND_REGENERATE=1 cargo test -p impound-controller --test crds`",
        path.display()
    );
}
