//! `schema/*.json`: what the types say of `manifest.json` and of a line of `custody.jsonl`, published for
//! readers in other languages, and kept equal to the types by this test.

use std::borrow::Cow;
use std::path::Path;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::manifest::statement::Statement;
use crate::{CaseId, CollectionName, Entry, EvidencePath, Sha256, Timestamp};

macro_rules! text {
    ($of:ty, $name:literal, $pattern:literal, $about:literal) => {
        impl JsonSchema for $of {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "description": $about })
            }
        }
    };
}

text!(
    Sha256,
    "Sha256",
    "^[0-9a-f]{64}$",
    "A SHA-256 in hexadecimal."
);
text!(
    Timestamp,
    "Timestamp",
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z$",
    "RFC 3339, UTC, microseconds."
);
text!(
    CaseId,
    "CaseId",
    r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$",
    "A case."
);
text!(
    CollectionName,
    "CollectionName",
    r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$",
    "A collection: a DNS subdomain."
);
text!(
    EvidencePath,
    "EvidencePath",
    r"^[!-\[\]-~]{1,1024}$",
    "A file below its collection: /-separated, visible ASCII without backslash, no segment . or .."
);

text!(
    crate::age::Recipient,
    "Recipient",
    "^age1[02-9ac-hj-np-z]{58}$",
    "The public key of an age X25519 recipient."
);

#[test]
fn the_published_schemas_say_what_the_types_say() {
    let schemas = [
        (
            "manifest.schema.json",
            schemars::schema_for!(Statement<'static>),
        ),
        ("custody-entry.schema.json", schemars::schema_for!(Entry)),
    ];
    for (name, mut schema) in schemas {
        let id = format!("https://impound.dev/evidence/v1/{name}");
        schema.insert("$id".to_owned(), id.into());
        let mut generated = serde_json::to_string_pretty(&schema).unwrap();
        generated.push('\n');
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("schema")
            .join(name);
        if std::env::var_os("IMPOUND_REGENERATE").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &generated).unwrap();
        }
        let present = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            present == generated,
            "{} is not what the types say: run `IMPOUND_REGENERATE=1 cargo test -p impound-evidence schema` and commit the result",
            path.display()
        );
    }
}
