//! Keeps a sweep from being gone before its end. Who deletes one under way cancels it: what is not begun is named, in
//! the status and in the custody log, and what is under way comes to its end, before the object goes.

use kube::api::{Api, Patch};
use kube::{Resource, ResourceExt};
use serde_json::json;

use crate::kubernetes::from_kube;
use crate::reconcile::record::manager;
use crate::reconcile::{Context, ReconcileError};
use crate::resources::Sweep;
use crate::resources::sweep::SWEEP_FINALIZER;

/// Whether it is kept.
pub(super) fn is_kept(sweep: &Sweep) -> bool {
    let mut finalizers = sweep.finalizers().iter();
    finalizers.any(|finalizer| finalizer == SWEEP_FINALIZER)
}

/// Puts the finalizer on, before anything is done for the sweep.
///
/// # Errors
/// If the API does not take the change.
pub(super) async fn keep(sweep: Sweep, context: &Context) -> Result<Sweep, ReconcileError> {
    if is_kept(&sweep) || sweep.meta().deletion_timestamp.is_some() {
        return Ok(sweep);
    }
    let mut finalizers = sweep.finalizers().to_vec();
    finalizers.push(SWEEP_FINALIZER.into());
    write(&sweep, &finalizers, context).await
}

/// Takes it off: the sweep has ended.
///
/// # Errors
/// As [`keep`].
pub(super) async fn let_go(sweep: &Sweep, context: &Context) -> Result<(), ReconcileError> {
    if !is_kept(sweep) {
        return Ok(());
    }
    let mut left = sweep.finalizers().to_vec();
    left.retain(|finalizer| finalizer != SWEEP_FINALIZER);
    match write(sweep, &left, context).await {
        Err(ReconcileError::Api(error)) if error.code() == 404 => Ok(()),
        written => written.map(drop),
    }
}

/// The list is written whole: the version guards what others put into it.
async fn write(
    sweep: &Sweep,
    finalizers: &[String],
    context: &Context,
) -> Result<Sweep, ReconcileError> {
    let metadata = &sweep.metadata;
    let patch = json!({ "metadata": {
        "uid": metadata.uid,
        "resourceVersion": metadata.resource_version,
        "finalizers": finalizers,
    } });
    let name = sweep.name_any();
    let api = Api::<Sweep>::all(context.client.clone());
    let patched = api.patch(&name, &manager(), &Patch::Merge(patch)).await;
    patched.map_err(|error| from_kube("PATCH", &format!("sweeps/{name}"), error).into())
}
