//! The writable layer: first useful evidence, and nothing that a collection depends on.

use impound_evidence::{Event, Method, Outcome};

use super::agent::Fault;
use super::fixture::{DIRECTORY, EXPORT_LISTINGS, Fixture};

#[tokio::test]
async fn a_layer_is_stored_before_the_export_and_listed_with_the_diff() {
    let fixture = Fixture::new().await;
    let id = {
        let mut state = fixture.agent.state.lock().unwrap();
        let id = state.containers[0].id.clone();
        let tar = state.exports[&id].clone();
        state.layers.insert(id.clone(), tar);
        id
    };
    let sealed = fixture.run().await.unwrap();
    assert_eq!(
        (sealed.outcome, sealed.missing),
        (Outcome::Complete, vec![])
    );
    let layer = format!("{DIRECTORY}/app/layer.tar");
    let manifest = fixture.manifest();
    let record = manifest.artifact(&layer.parse().unwrap()).unwrap();
    assert_eq!(record.method, Method::Layer);
    assert!(record.api_call.contains("over image sha256:1234"));
    for name in EXPORT_LISTINGS {
        assert!(
            fixture.files().contains(&format!("{layer}.{name}")),
            "{name}"
        );
    }
    assert!(
        !manifest
            .omissions
            .iter()
            .any(|text| text.contains("layer.tar"))
    );
    let calls = fixture.agent.calls();
    let at = |call: String| calls.iter().position(|one| *one == call).unwrap();
    assert!(at(format!("diff {id}")) < at(format!("layer {id}")));
    assert!(at(format!("layer {id}")) < at(format!("export {id}")));
    assert!(fixture.verdict().complete());
}

#[tokio::test]
async fn a_node_that_can_not_read_layers_takes_nothing_from_a_collection() {
    let fixture = Fixture::new().await;
    let sealed = fixture.run().await.unwrap();
    assert_eq!(
        (sealed.outcome, sealed.missing),
        (Outcome::Complete, vec![])
    );
    let manifest = fixture.manifest();
    let said = format!("{DIRECTORY}/app/layer.tar was left out: the agent answered: ");
    let of_layer = manifest
        .omissions
        .iter()
        .filter(|text| text.starts_with(&said));
    let of_layer: Vec<_> = of_layer.collect();
    assert_eq!(of_layer.len(), 1, "{:?}", manifest.omissions);
    assert!(
        of_layer[0].contains("its root is no overlayfs"),
        "{of_layer:?}"
    );
    let asked = fixture.agent.calls();
    let asked = asked.iter().filter(|call| call.starts_with("layer "));
    assert_eq!(asked.count(), 1, "it is not asked again");
    assert_eq!(fixture.events(Event::Failed), 0);
}

#[tokio::test]
async fn a_layer_that_breaks_off_is_kept_and_the_next_attempt_has_it_whole() {
    let fixture = Fixture::new().await;
    {
        let mut state = fixture.agent.state.lock().unwrap();
        let id = state.containers[0].id.clone();
        let tar = state.exports[&id].clone();
        state.layers.insert(id, tar);
    }
    fixture.agent.fail("layer", Fault::BreakAfter(2));
    let sealed = fixture.run().await.unwrap();
    assert_eq!(
        (sealed.outcome, sealed.missing),
        (Outcome::Complete, vec![])
    );
    let layer = format!("{DIRECTORY}/app/layer.tar");
    assert!(fixture.files().contains(&layer));
    assert!(fixture.files().contains(&format!("{layer}.partial-1")));
}
