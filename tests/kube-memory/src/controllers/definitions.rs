//! CustomResourceDefinitions: accepted and served, or emptied and gone.

use std::sync::Arc;

use crate::crd;
use crate::json;
use crate::refusal::Outcome;
use crate::state::{DeleteOptions, State};

use super::tolerate;

const MANAGER: &str = "kube-apiserver";

pub(super) fn sync(state: &mut State) -> Outcome<()> {
    for definition in state.store.list(crd::DEFINITIONS, "") {
        let table = crd::table(&definition);
        if json::terminating(&definition) {
            for object in state.store.list(&table, "") {
                if !json::terminating(&object) {
                    tolerate(
                        "custom resource",
                        state.discard(&table, &object, &DeleteOptions::default()),
                    );
                }
            }
            if state.store.table(&table).is_empty() {
                state.registry.remove(&table);
                let freed =
                    state.change(crd::DEFINITIONS, &definition, "", MANAGER, |definition| {
                        if let Some(list) = json::list_mut(definition, "/metadata/finalizers") {
                            list.retain(|finalizer| finalizer != crd::CLEANUP);
                        }
                    });
                tolerate("definition", freed);
            }
        } else if json::condition(&definition, "Established") != "True" {
            let established: Arc<_> = state.change(
                crd::DEFINITIONS,
                &definition,
                "status",
                MANAGER,
                crd::establish,
            )?;
            crd::serve(state, &established);
        }
    }
    Ok(())
}
