//! The agent's side: from nothing to a certificate, and to the next one.

use std::time::Duration;

use impound_proto::PeerId;
use impound_proto::tls::{Peers, TlsFiles, certificate_life, server_credentials};
use tokio::sync::watch;

use crate::world::{NODE, World};

#[tokio::test]
async fn an_agent_gets_a_certificate_that_it_can_serve_with_and_keeps_it_over_a_restart() {
    let world = World::start(time::Duration::hours(12)).await;
    let enrolment = world.enrolment(NODE).await;
    enrolment.first().await;
    let files = TlsFiles::in_dir(&enrolment.tls_dir, "controller-ca.crt");
    let own = PeerId::agent(NODE).unwrap();
    let (credentials, _) =
        server_credentials(files.clone(), own.clone(), Peers::Only(PeerId::Controller)).unwrap();
    assert_eq!(credentials.own(), &own);
    let before = certificate_life(&files).unwrap();
    // Restarted: two thirds of its life are not over, so nothing is asked for. (The token is used up.)
    enrolment.first().await;
    assert_eq!(certificate_life(&files).unwrap(), before);
}

#[tokio::test]
async fn a_certificate_is_renewed_after_two_thirds_of_its_life_and_trouble_is_told_meanwhile() {
    // Back-dated by five minutes, so two thirds of its life are over at once.
    let world = World::start(time::Duration::minutes(2)).await;
    let enrolment = world.enrolment(NODE).await;
    enrolment.first().await;
    let files = TlsFiles::in_dir(&enrolment.tls_dir, "controller-ca.crt");
    let first = std::fs::read(&files.certificate).unwrap();
    let (publish, mut trouble) = watch::channel(None);
    let token = enrolment.token.clone();
    let keeping = tokio::spawn(enrolment.keep(publish));
    // The token was used for another key.
    let told = trouble.wait_for(Option::is_some).await.unwrap().clone();
    assert!(told.unwrap().contains("was used before"));
    assert_eq!(
        std::fs::read(&files.certificate).unwrap(),
        first,
        "the former one stays in use"
    );
    // The kubelet renews the token.
    std::fs::write(&token, world.good_token().await).unwrap();
    let renewed = tokio::time::timeout(Duration::from_secs(60), trouble.wait_for(Option::is_none));
    renewed.await.unwrap().unwrap();
    assert_ne!(std::fs::read(&files.certificate).unwrap(), first);
    keeping.abort();
}
