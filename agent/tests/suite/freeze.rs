//! Freezes of real containers: an export meanwhile is whole, and the time limit holds without anybody.

use std::time::{Duration, SystemTime};

use impound_proto::agent::v1::{FreezeRequest, ThawRequest};
use tonic::Code;

use crate::engine::{docker, line};
use crate::pod::Pod;
use crate::world::{World, case};

fn paused(pod: &Pod) -> bool {
    line(docker(&["inspect", "-f", "{{.State.Paused}}", &pod.app.id])) == "true"
}

fn request(pod: &Pod, limit_ms: u32) -> FreezeRequest {
    FreezeRequest {
        container_ids: vec![pod.app.id.clone()],
        limit_ms,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_container_can_be_exported_and_goes_on_when_it_is_thawed() {
    let mut world = World::docker().await;
    let pod = Pod::start("frozen");
    let mut client = world.client.clone();
    let frozen = client.freeze(case(request(&pod, 3_600_000))).await;
    let frozen = frozen.unwrap().into_inner();
    assert!(paused(&pod));
    let second = client.freeze(case(request(&pod, 1000))).await;
    assert_eq!(second.unwrap_err().code(), Code::FailedPrecondition);
    assert!(paused(&pod), "a freeze that is refused lets nobody go");
    assert!(world.export(&pod.app.id).await.unwrap().complete());
    let freeze_id = frozen.freeze_id;
    let thaw = ThawRequest { freeze_id };
    let thawed = client.thaw(case(thaw)).await.unwrap().into_inner();
    assert!(!thawed.by_deadline && thawed.thawed.is_some());
    assert!(!paused(&pod));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_freeze_ends_at_its_limit_when_its_caller_is_gone() {
    let world = World::docker().await;
    let pod = Pod::start("frozen");
    let mut client = world.client.clone();
    let before = SystemTime::now();
    let frozen = client.freeze(case(request(&pod, 2000))).await.unwrap();
    let freeze_id = frozen.into_inner().freeze_id;
    assert!(paused(&pod));
    while paused(&pod) {
        assert!(before.elapsed().unwrap() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let thaw = ThawRequest { freeze_id };
    assert!(
        client
            .thaw(case(thaw))
            .await
            .unwrap()
            .into_inner()
            .by_deadline
    );
    assert!(before.elapsed().unwrap() >= Duration::from_millis(1900));
}
