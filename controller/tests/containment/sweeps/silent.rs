//! Many nodes whose agents are dead, in front of those that live: nobody waits for them, and they cost the API server
//! next to nothing.

use std::net::TcpListener as Listener;
use std::time::{Duration, Instant};

use super::*;

/// Each costs a round that waits for it three seconds.
const DEAD: usize = 12;

/// A fleet with one pod on each node, first of all on those where connections are taken and never answered.
async fn fleet(patience: &str) -> (Fleet, Vec<Listener>) {
    let port = free_port();
    let (nodes, holes): (Vec<_>, Vec<_>) = (0..DEAD)
        .map(|number| {
            let ip = format!("127.0.1.{}", number + 1);
            let hole = Listener::bind((ip.as_str(), port)).unwrap();
            (format!("dead-{number:02}={ip}"), hole)
        })
        .unzip();
    let mut fleet = Fleet::beside(&nodes, port, 1).await;
    for number in 0..DEAD {
        let pod = pod(&format!("dead-{number:02}"), &format!("dead-{number:02}"));
        fleet.world.create(pod).await;
    }
    *fleet.world.about_agents.last_mut().unwrap() = patience.to_owned();
    fleet.world.start_controller().await;
    (fleet, holes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_agents_keep_those_that_live_waiting_for_a_fraction_of_their_silence() {
    let (fleet, _holes) = fleet("600").await;
    let request = CreateSweepRequest {
        at_once: 1,
        ..fleet.request()
    };
    let begun = Instant::now();
    fleet.start(request).await;
    let busy = fleet
        .becomes("those that live are sealed", |now| {
            now.counts.unwrap().sealed == 3
        })
        .await;
    let took = begun.elapsed();
    let all_silent = Duration::from_secs(3) * u32::try_from(DEAD).unwrap();
    assert!(took < all_silent / 2, "{took:?} for {DEAD} dead agents");
    let counts = busy.counts.unwrap();
    assert_eq!(counts.waiting as usize, DEAD, "{busy:#?}");
    assert!(busy.message.contains("no agent answers on node dead-"));

    // They are tried again, and seldom.
    let about_dead = |path: &str| path.contains("/nodes/dead-") || path.contains("/pods/dead-");
    let tries = || {
        let requests = fleet.world.requests();
        requests.iter().filter(|one| about_dead(&one.path)).count()
    };
    let (before, since) = (tries(), Instant::now());
    eventually("each is tried again", || async {
        match tries() - before {
            more if more >= 2 * DEAD => Ok(()),
            more => Err(format!("{more} requests")),
        }
    })
    .await;
    let rate = (tries() - before) as f64 / since.elapsed().as_secs_f64();
    assert!(rate < 5.0, "{rate} requests a second");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_agents_are_given_up_when_they_were_tried_again_and_nothing_else_is_left() {
    let (fleet, _holes) = fleet("1").await;
    fleet.start(fleet.request()).await;
    let ended = fleet.ended().await;
    assert_eq!(ended.phase, "Partial", "{ended:#?}");
    let counts = ended.counts.unwrap();
    assert_eq!((counts.sealed, counts.failed as usize), (3, DEAD));
    for one in &ended.exceptions {
        let word = format!("no agent answered on node {} for 1 s", one.node);
        assert!(one.message.contains(&word), "{one:?}");
    }
    let requests = fleet.world.requests();
    for number in 0..DEAD {
        let path = format!("/nodes/dead-{number:02}");
        let asked = requests.iter().filter(|one| one.path.ends_with(&path));
        assert!(asked.count() >= 2, "{path}");
    }
}
