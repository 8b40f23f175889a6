//! What responders and incident-response platforms call, over gRPC and TLS.
//!
//! A call comes through the `door` (who is it, is it too much), then `admit` asks whether they may do that there,
//! before anything is read or done.
//!
//! Requests become custom resources, which the reconcilers work on: a request that was answered
//! survives a restart. Evidence is read straight from the store.

mod authorise;
mod cases;
mod collections;
mod containers;
mod convert;
mod diagnose;
mod door;
mod evidence;
mod hold;
mod isolation;
mod limits;
mod listed;
mod quarantines;
mod refused;
mod standing;
mod status;
mod sweeps;
mod tokens;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use impound_proto::controller::v1 as wire;
use impound_proto::controller::v1::controller_server::Controller;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use crate::health::Health;
use crate::reconcile::Context;
use crate::store::Store;
use authorise::{Need, Scope};
pub use cases::Cases;
pub use diagnose::{Diagnosed, Reviews};
pub use door::Door;
pub use limits::{Allowance, Limits};
pub use listed::Listings;
use refused::Call;
pub use refused::Refusals;
pub use tokens::{AUDIENCE, Tokens};

/// Largest request in bytes. The largest real ones, a quarantine with all its rules, have a few KiB.
pub const REQUEST_LIMIT: usize = 256 << 10;

/// The gRPC service of the controller.
pub struct Service {
    /// Shared with the reconcilers.
    pub context: Arc<Context>,
    /// Where the evidence is.
    pub store: Arc<dyn Store>,
    /// What this process depends on.
    pub health: Arc<Health>,
    /// Writes down who was refused what.
    pub refusals: Arc<Refusals>,
    /// Writes down who listed what.
    pub listings: Arc<Listings>,
    /// Which case a quarantine belongs to.
    pub cases: Cases,
    /// Whoever verifies holds the one permit.
    pub verifying: Semaphore,
    /// What is asked about others' tokens.
    pub reviews: Reviews,
    /// Pause before the right behind an open stream is looked at again.
    pub recheck: Duration,
    /// What was last found of the whole installation: each look costs some hundred calls.
    pub diagnosed: Diagnosed,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Controller for Service {
    async fn create_quarantine(
        &self,
        request: Request<wire::CreateQuarantineRequest>,
    ) -> Result<Response<wire::CreateQuarantineResponse>, Status> {
        let asked = request.get_ref();
        let case = asked.case_id.clone();
        let call = Call {
            name: "quarantine",
            need: Need::Respond,
            // What is lost for good with these is of every pod on the node, whatever its namespace.
            scope: match asked.evict_unmanaged || asked.delete_empty_dir_data {
                true => Scope::Everything,
                false => Scope::of(&asked.namespace),
            },
            case: &case,
            target: &format!("case {case}, pod {}/{}", asked.namespace, asked.pod),
        };
        let who = self.admit(&request, call).await?;
        let request = request.into_inner();
        if request.dry_run {
            return quarantines::plan(self, request).await.map(Response::new);
        }
        let answer = quarantines::create(self, who.clone(), request).await;
        self.noted(&who, "quarantine", &case, answer).await
    }

    async fn get_quarantine(
        &self,
        request: Request<wire::GetQuarantineRequest>,
    ) -> Result<Response<wire::Quarantine>, Status> {
        let asked = request.get_ref();
        self.look(&request, "get quarantine", &asked.namespace, &asked.name)
            .await?;
        let request = request.into_inner();
        let found = quarantines::find(self, &request.namespace, &request.name).await?;
        Ok(Response::new(convert::quarantine(&found)))
    }

    async fn list_quarantines(
        &self,
        request: Request<wire::ListQuarantinesRequest>,
    ) -> Result<Response<wire::ListQuarantinesResponse>, Status> {
        self.look(
            &request,
            "list quarantines",
            &request.get_ref().namespace,
            "",
        )
        .await?;
        quarantines::list(self, request.into_inner())
            .await
            .map(Response::new)
    }

    type WatchQuarantineStream = Answers<wire::Quarantine>;

    async fn watch_quarantine(
        &self,
        request: Request<wire::WatchQuarantineRequest>,
    ) -> Result<Response<Self::WatchQuarantineStream>, Status> {
        let asked = request.get_ref();
        let call = "watch quarantine";
        self.look(&request, call, &asked.namespace, &asked.name)
            .await?;
        let standing = self.standing(&request, call, Need::Look, &asked.namespace, "")?;
        let answers = quarantines::watch(self, request.into_inner()).await?;
        Ok(Response::new(standing.over(answers)))
    }

    async fn release_quarantine(
        &self,
        request: Request<wire::ReleaseQuarantineRequest>,
    ) -> Result<Response<wire::Quarantine>, Status> {
        let (who, case) = self.admit_release(&request, "release").await?;
        let answer = quarantines::release(self, who.clone(), request.into_inner()).await;
        self.noted(&who, "release", &case, answer).await
    }

    async fn plan_release(
        &self,
        request: Request<wire::ReleaseQuarantineRequest>,
    ) -> Result<Response<wire::Plan>, Status> {
        self.admit_release(&request, "plan release").await?;
        quarantines::plan_release(self, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn create_collection(
        &self,
        request: Request<wire::CreateCollectionRequest>,
    ) -> Result<Response<wire::Collection>, Status> {
        let asked = request.get_ref();
        let case = asked.case_id.clone();
        let call = Call {
            name: "collect",
            need: Need::Respond,
            scope: Scope::of(&asked.namespace),
            case: &case,
            target: &format!("case {case}, pod {}/{}", asked.namespace, asked.pod),
        };
        let who = self.admit(&request, call).await?;
        let answer = collections::create(self, who.clone(), request.into_inner()).await;
        self.noted(&who, "collect", &case, answer).await
    }

    async fn get_collection(
        &self,
        request: Request<wire::GetCollectionRequest>,
    ) -> Result<Response<wire::Collection>, Status> {
        let asked = request.get_ref();
        self.look(&request, "get collection", &asked.namespace, &asked.name)
            .await?;
        collections::get(self, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn list_collections(
        &self,
        request: Request<wire::ListCollectionsRequest>,
    ) -> Result<Response<wire::ListCollectionsResponse>, Status> {
        self.look(
            &request,
            "list collections",
            &request.get_ref().namespace,
            "",
        )
        .await?;
        collections::list(self, request.into_inner())
            .await
            .map(Response::new)
    }

    type WatchCollectionStream = Answers<wire::Collection>;

    async fn watch_collection(
        &self,
        request: Request<wire::WatchCollectionRequest>,
    ) -> Result<Response<Self::WatchCollectionStream>, Status> {
        let asked = request.get_ref();
        let call = "watch collection";
        self.look(&request, call, &asked.namespace, &asked.name)
            .await?;
        let standing = self.standing(&request, call, Need::Look, &asked.namespace, "")?;
        let answers = collections::watch(self, request.into_inner()).await?;
        Ok(Response::new(standing.over(answers)))
    }

    async fn create_sweep(
        &self,
        request: Request<wire::CreateSweepRequest>,
    ) -> Result<Response<wire::CreateSweepResponse>, Status> {
        let asked = request.get_ref();
        let case = asked.case_id.clone();
        let call = Call {
            name: "sweep",
            need: Need::Respond,
            // Pods of all namespaces may be in its list.
            scope: Scope::Everything,
            case: &case,
            target: &format!("case {case}, sweep {}", asked.name),
        };
        let who = self.admit(&request, call).await?;
        let request = request.into_inner();
        if request.dry_run {
            return sweeps::plan(self, request).await.map(Response::new);
        }
        let answer = sweeps::create(self, who.clone(), request).await;
        self.noted(&who, "sweep", &case, answer).await
    }

    async fn get_sweep(
        &self,
        request: Request<wire::GetSweepRequest>,
    ) -> Result<Response<wire::Sweep>, Status> {
        self.look(&request, "get sweep", "", &request.get_ref().name)
            .await?;
        let found = sweeps::find(self, &request.get_ref().name).await?;
        Ok(Response::new(sweeps::shown(&found)))
    }

    async fn list_sweeps(
        &self,
        request: Request<wire::ListSweepsRequest>,
    ) -> Result<Response<wire::ListSweepsResponse>, Status> {
        self.look(&request, "list sweeps", "", "").await?;
        sweeps::list(self, request.into_inner())
            .await
            .map(Response::new)
    }

    type WatchSweepStream = Answers<wire::Sweep>;

    async fn watch_sweep(
        &self,
        request: Request<wire::WatchSweepRequest>,
    ) -> Result<Response<Self::WatchSweepStream>, Status> {
        let call = "watch sweep";
        self.look(&request, call, "", &request.get_ref().name)
            .await?;
        let standing = self.standing(&request, call, Need::Look, "", "")?;
        let answers = sweeps::watch(self, request.into_inner()).await?;
        Ok(Response::new(standing.over(answers)))
    }

    async fn set_sweep(
        &self,
        request: Request<wire::SetSweepRequest>,
    ) -> Result<Response<wire::Sweep>, Status> {
        let name = &request.get_ref().name;
        let call = Call {
            name: "change sweep",
            need: Need::Respond,
            scope: Scope::Everything,
            case: "",
            target: &format!("sweep {name}"),
        };
        let who = self.admit(&request, call).await?;
        let case = sweeps::find(self, name).await?.spec.case;
        let answer = sweeps::set(self, &who, request.into_inner()).await;
        self.noted(&who, "change sweep", &case, answer).await
    }

    type ListSweepTargetsStream = Answers<wire::ListSweepTargetsResponse>;

    async fn list_sweep_targets(
        &self,
        request: Request<wire::ListSweepTargetsRequest>,
    ) -> Result<Response<Self::ListSweepTargetsStream>, Status> {
        let call = "list sweep's targets";
        self.look(&request, call, "", &request.get_ref().name)
            .await?;
        let standing = self.standing(&request, call, Need::Look, "", "")?;
        let answers = sweeps::targets(self, request.into_inner()).await?;
        Ok(Response::new(standing.over(answers)))
    }

    async fn list_evidence(
        &self,
        request: Request<wire::ListEvidenceRequest>,
    ) -> Result<Response<wire::ListEvidenceResponse>, Status> {
        let asked = request.get_ref();
        let case = asked.case_id.clone();
        let at = [&*asked.case_id, &*asked.collection];
        let call = "list evidence";
        let who = self.admit_evidence(&request, Need::Look, call, &at).await?;
        let answer = evidence::list(self, &who, request.into_inner()).await;
        self.noted(&who, call, &case, answer).await
    }

    type ReadEvidenceStream = Answers<wire::ReadEvidenceResponse>;

    async fn read_evidence(
        &self,
        request: Request<wire::ReadEvidenceRequest>,
    ) -> Result<Response<Self::ReadEvidenceStream>, Status> {
        let asked = request.get_ref();
        let case = asked.case_id.clone();
        let at = [&*asked.case_id, &*asked.collection, &*asked.path];
        let call = "read evidence";
        let who = self.admit_evidence(&request, Need::Keep, call, &at).await?;
        let standing = self.standing(&request, call, Need::Keep, "", &case)?;
        let answer = evidence::read(self, &who, request.into_inner()).await;
        let answer = answer.map(|answers| standing.over(answers));
        self.noted(&who, call, &case, answer).await
    }

    async fn verify_evidence(
        &self,
        request: Request<wire::VerifyEvidenceRequest>,
    ) -> Result<Response<wire::VerifyEvidenceResponse>, Status> {
        let asked = request.get_ref();
        let case = asked.case_id.clone();
        let at = [&*asked.case_id, &*asked.collection];
        let who = self
            .admit_evidence(&request, Need::Respond, "verify evidence", &at)
            .await?;
        let answer = evidence::verify(self, &who, request.into_inner()).await;
        self.noted(&who, "verify evidence", &case, answer).await
    }

    async fn hold_evidence(
        &self,
        request: Request<wire::HoldEvidenceRequest>,
    ) -> Result<Response<wire::HoldEvidenceResponse>, Status> {
        let asked = request.get_ref();
        let case = asked.case_id.clone();
        let call = match asked.lift {
            true => "lift hold of evidence",
            false => "hold evidence",
        };
        let at = [&*asked.case_id, &*asked.collection];
        let who = self.admit_evidence(&request, Need::Keep, call, &at).await?;
        let answer = hold::hold(self, &who, request.into_inner()).await;
        self.noted(&who, call, &case, answer).await
    }

    async fn list_containers(
        &self,
        request: Request<wire::ListContainersRequest>,
    ) -> Result<Response<wire::ListContainersResponse>, Status> {
        // A node has pods of all namespaces.
        let call = Call {
            name: "list containers",
            need: Need::Look,
            scope: Scope::Everything,
            case: "",
            target: &format!("node {}", request.get_ref().node),
        };
        self.admit(&request, call).await?;
        containers::list(self, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn diagnose(
        &self,
        request: Request<wire::DiagnoseRequest>,
    ) -> Result<Response<wire::DiagnoseResponse>, Status> {
        self.look(&request, "diagnose", "", "").await?;
        Ok(Response::new(self.diagnosed.lately(self).await))
    }
}

impl Service {
    /// Whether the caller may see this object, or these of a namespace.
    async fn look<T: Sync>(
        &self,
        request: &Request<T>,
        call: &'static str,
        namespace: &str,
        name: &str,
    ) -> Result<(), Status> {
        let call = Call {
            name: call,
            need: Need::Look,
            scope: Scope::of(namespace),
            case: "",
            target: &format!("{namespace}/{name}"),
        };
        self.admit(request, call).await.map(drop)
    }

    /// Who may do that to a case's evidence: the evidence of one case is of several namespaces.
    async fn admit_evidence<T: Sync>(
        &self,
        request: &Request<T>,
        need: Need,
        call: &'static str,
        at: &[&str],
    ) -> Result<authorise::Requester, Status> {
        let call = Call {
            name: call,
            need,
            scope: Scope::Everything,
            case: at.first().copied().unwrap_or_default(),
            target: &format!("evidence {}", at.join("/")),
        };
        self.admit(request, call).await
    }

    /// Who may release, and the case that is released.
    async fn admit_release(
        &self,
        request: &Request<wire::ReleaseQuarantineRequest>,
        call: &'static str,
    ) -> Result<(authorise::Requester, String), Status> {
        let asked = request.get_ref();
        let known = self.cases.of(&asked.namespace, &asked.name);
        let call = Call {
            name: call,
            need: Need::Respond,
            scope: Scope::of(&asked.namespace),
            case: &known,
            target: &format!("{}/{}", asked.namespace, asked.name),
        };
        let who = self.admit(request, call).await?;
        let found = quarantines::find(self, &asked.namespace, &asked.name).await?;
        Ok((who, found.spec.case))
    }
}
