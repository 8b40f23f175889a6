//! The checked-in definitions are those of the Rust types.

use std::path::Path;

use impound_controller::resources::{definitions, yaml};

#[test]
fn checked_in_definitions_match_the_types() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
    let regenerate = std::env::var_os("IMPOUND_REGENERATE").is_some();
    for definition in definitions() {
        let name = definition
            .metadata
            .name
            .clone()
            .expect("a definition has a name");
        let path = directory.join(format!("{name}.yaml"));
        let generated = yaml(&definition).expect("a definition is serialisable");
        if regenerate {
            std::fs::write(&path, &generated).expect("deploy/crds is writable");
        }
        let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            checked_in == generated,
            "{} is out of date: run `IMPOUND_REGENERATE=1 cargo test -p impound-controller --test crds`",
            path.display()
        );
    }
}
