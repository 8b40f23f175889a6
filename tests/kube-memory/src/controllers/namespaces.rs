//! Namespaces on their way out: everything in them is deleted, then they are.

use crate::json;
use crate::refusal::Outcome;
use crate::state::{DeleteOptions, State};

use super::tolerate;

pub(super) fn sync(state: &mut State) -> Outcome<()> {
    for namespace in state.store.list("namespaces", "") {
        if !json::terminating(&namespace) {
            continue;
        }
        let name = json::name(&namespace).to_owned();
        let mut contents = Vec::new();
        for (table, objects) in state.store.tables() {
            contents.extend(
                objects
                    .list(&name)
                    .map(|object| (table.clone(), object.clone())),
            );
        }
        for (table, object) in contents
            .iter()
            .filter(|(_, object)| !json::terminating(object))
        {
            tolerate(
                "content",
                state.discard(table, object, &DeleteOptions::default()),
            );
        }
        let empty = state
            .store
            .tables()
            .all(|(_, objects)| objects.list(&name).next().is_none());
        if empty && json::list(&namespace, "/metadata/finalizers").is_empty() {
            let table = state.resource("namespaces")?.table.clone();
            state.store.remove(&table, "", &name);
        }
    }
    Ok(())
}
