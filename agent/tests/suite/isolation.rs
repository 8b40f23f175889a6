//! Isolation of real containers: what flowed is dead, nothing else notices, and it can be taken back.

mod calls;
mod refusals;

use std::net::SocketAddr;
use std::time::Duration;

use impound_proto::agent::v1::{
    AllowDirection, InspectIsolationRequest, IsolateRequest, IsolationWeaknessKind, NodeAccess,
    ProbeIsolationRequest,
    ProbeOutcome::{self, Connected, TimedOut},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::engine::docker;
use crate::pod::{HOST, HOST6, PORT, Pod, host_rules};
use crate::world::{CASE, World, case};
use calls::{
    QUARANTINE, Sink, allow, answers, free_port, inspect, isolate, lift, ping, probe, request,
    target, udp_arrives, until_connected, wait_until,
};

/// Long enough for dozens of packets of the test's streams, had they a way.
const QUIET: Duration = Duration::from_millis(1500);

#[tokio::test(flavor = "multi_thread")]
async fn established_and_new_traffic_is_dead_and_nobody_else_notices() {
    let world = World::isolating().await;
    let client = &world.client;
    let (suspect, neighbour) = (Pod::start("suspect"), Pod::start("neighbour"));
    let (host, host6) = (Sink::at(HOST).await, Sink::at(HOST6).await);
    // Rules that the pod had before, such as a mesh's; they also turn connection tracking on.
    suspect.inside(&["nft", "add table inet mesh"]);
    for rule in [
        "add chain inet mesh first { type filter hook output priority raw; policy accept; }",
        "add chain inet mesh in { type filter hook input priority filter; policy accept; }",
        "add rule inet mesh in ct state established,related accept",
    ] {
        suspect.inside(&["nft", rule]);
    }
    let rules_before = suspect.inside(&["nft", "--stateless", "list", "ruleset"]);

    let neighbour_before = neighbour.inside(&["nft", "--stateless", "list", "ruleset"]);

    // Out of the suspect: to the host and to its neighbour. Towards it: from the node and the neighbour.
    let outward = [
        host.target(),
        host6.target(),
        target(&neighbour.address()),
        target(&neighbour.address6()),
    ];
    let inward = [target(&suspect.address()), target(&suspect.address6())];
    until_connected(client, &suspect, &outward, &inward).await;
    until_connected(client, &neighbour, &inward, &[]).await;
    assert!(ping(&suspect, HOST) && ping(&suspect, HOST6));
    assert!(udp_arrives(&suspect).await);

    // Established in both directions, with data flowing.
    let ticks = host.count();
    let ticking = format!(
        "while :; do echo tick; sleep 0.05; done | /bin/busybox nc {HOST} {}",
        host.port
    );
    docker(&["exec", "-d", &suspect.app.id, "/bin/sh", "-c", &ticking]);
    wait_until("the suspect's stream flows", || host.count() > ticks + 20).await;
    let mut echo = TcpStream::connect((suspect.address(), PORT)).await.unwrap();
    assert!(answers(&mut echo).await);

    let isolated = loop {
        let before = host_rules();
        let isolated = isolate(client, &suspect, Vec::new()).await.unwrap();
        // Other programs of this machine may have changed the host's rules meanwhile: once more then.
        if host_rules() == before {
            break isolated;
        }
        assert!(!host_rules().contains("impound"), "{}", host_rules());
        assert!(lift(client, &suspect).await.unwrap());
    };
    assert!(isolated.installed && !isolated.replaced);
    assert_eq!(isolated.sandbox_id, suspect.sandbox.id);
    assert_eq!(
        (isolated.case_id.as_str(), isolated.quarantine.as_str()),
        (CASE, QUARANTINE)
    );
    let inode = suspect.inside(&["readlink", "/proc/self/ns/net"]);
    assert_eq!(inode.trim(), format!("net:[{}]", isolated.netns_inode));

    // What was on its way may still arrive; after it, nothing.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let ticks = host.count();
    echo.write_all(b"ping").await.unwrap();
    let mut byte = [0];
    let answer = tokio::time::timeout(QUIET, echo.read(&mut byte)).await;
    assert!(
        answer.is_err(),
        "an established connection still answers: {answer:?}"
    );
    assert_eq!(
        host.count(),
        ticks,
        "the suspect's established stream still flows"
    );

    for (outcome, what) in probe(client, &suspect, &outward, &inward).await {
        assert_eq!(outcome, TimedOut, "{what}");
    }
    for (outcome, what) in probe(client, &neighbour, &inward, &[]).await {
        assert_ne!(outcome, Connected, "{what}");
    }
    assert!(!ping(&suspect, HOST) && !ping(&suspect, HOST6));
    assert!(!udp_arrives(&suspect).await);

    // Inside the pod and around it everything is as it was.
    let inside = [
        target("127.0.0.1"),
        target("::1"),
        target(&suspect.address()),
    ];
    let around = [target(&neighbour.address()), target(&neighbour.address6())];
    for (outcome, what) in probe(client, &suspect, &inside, &[]).await {
        assert_eq!(outcome, Connected, "{what}");
    }
    for (outcome, what) in probe(
        client,
        &neighbour,
        &[host.target(), host6.target()],
        &around,
    )
    .await
    {
        assert_eq!(outcome, Connected, "{what}");
    }
    assert!(!host_rules().contains("impound"));
    assert_eq!(
        neighbour.inside(&["nft", "--stateless", "list", "ruleset"]),
        neighbour_before
    );

    // A second time changes nothing, not even the counts.
    let seen = inspect(client, &suspect, Vec::new()).await.unwrap();
    let again = isolate(client, &suspect, Vec::new()).await.unwrap();
    assert!(!again.installed && !again.replaced);
    assert_eq!(again.since, isolated.since);
    assert!(seen.isolated && seen.present && seen.differences.is_empty());
    for count in [seen.dropped_in, seen.dropped_out] {
        let count = count.unwrap();
        assert!(count.packets > 4 && count.bytes > 160, "{count:?}");
    }
    assert_eq!(seen.dropped_forward.unwrap().packets, 0);
    let still = inspect(client, &suspect, Vec::new()).await.unwrap();
    assert!(still.dropped_out.unwrap().packets >= seen.dropped_out.unwrap().packets);

    // As nft sees it: ours, and the pod's own as before.
    let listed = suspect.inside(&["nft", "list", "table", "inet", "impound"]);
    for part in [
        "comment \"impound case=INC-2026-001 quarantine=shop/suspect since=",
        "type filter hook input priority -350; policy drop;",
        "type filter hook output priority -350; policy drop;",
        "type filter hook forward priority -350; policy drop;",
        "iif \"lo\" accept",
        "oif \"lo\" accept",
    ] {
        assert!(listed.contains(part), "{part} is not in {listed}");
    }

    assert!(lift(client, &suspect).await.unwrap());
    assert_eq!(
        suspect.inside(&["nft", "--stateless", "list", "ruleset"]),
        rules_before
    );
    until_connected(client, &suspect, &outward, &inward).await;
    assert!(ping(&suspect, HOST) && udp_arrives(&suspect).await);
    assert!(!lift(client, &suspect).await.unwrap());
    let seen = inspect(client, &suspect, Vec::new()).await.unwrap();
    assert!(!seen.isolated && !seen.present && seen.rules.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_agent_process_finds_and_lifts_what_the_first_one_set() {
    let suspect = Pod::start("suspect");
    let inward = [target(&suspect.address())];
    let mut first = World::isolating().await;
    until_connected(&first.client, &suspect, &[], &inward).await;
    let set = isolate(&first.client, &suspect, Vec::new()).await.unwrap();
    first.stop().await.unwrap();
    drop(first);
    assert!(
        suspect
            .inside(&["nft", "list", "ruleset"])
            .contains("table inet impound")
    );

    let second = World::isolating().await;
    let client = &second.client;
    let seen = inspect(client, &suspect, Vec::new()).await.unwrap();
    assert!(seen.isolated);
    assert_eq!((seen.since, seen.case_id.as_str()), (set.since, CASE));
    assert!(
        !isolate(client, &suspect, Vec::new())
            .await
            .unwrap()
            .installed
    );
    assert_eq!(probe(client, &suspect, &[], &inward).await[0].0, TimedOut);
    assert!(lift(client, &suspect).await.unwrap());
    until_connected(client, &suspect, &[], &inward).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_allowed_passes_and_nothing_beside_it() {
    let world = World::isolating().await;
    let client = &world.client;
    let suspect = Pod::start("suspect");
    let (permitted, other) = (Sink::at(HOST).await, Sink::at(HOST).await);
    let (permitted6, other6) = (Sink::at(HOST6).await, Sink::at(HOST6).await);
    let all = [
        permitted.target(),
        permitted6.target(),
        other.target(),
        other6.target(),
    ];
    let inward = [target(&suspect.address()), target(&suspect.address6())];
    until_connected(client, &suspect, &all, &inward).await;

    // Out to one port of the host, on both families.
    let free = free_port().await;
    let egress = vec![
        allow(AllowDirection::Egress, HOST, permitted.port),
        allow(AllowDirection::Egress, "fd00:213:77::/64", permitted6.port),
        allow(AllowDirection::Egress, HOST, free),
    ];
    assert!(
        isolate(client, &suspect, egress.clone())
            .await
            .unwrap()
            .installed
    );
    // Neighbours of IPv6 are looked for anew, as after some minutes.
    suspect.inside(&["ip", "-6", "neigh", "flush", "all"]);
    let found = probe(client, &suspect, &all, &inward).await;
    let outcomes: Vec<ProbeOutcome> = found.iter().map(|(outcome, _)| *outcome).collect();
    let expected = [Connected, Connected, TimedOut, TimedOut, TimedOut, TimedOut];
    assert_eq!(outcomes, expected, "{found:?}");
    // The rule for answers is no way in: not even from the permitted port.
    let from = TcpSocket::new_v4().unwrap();
    from.bind(SocketAddr::new(HOST.parse().unwrap(), free))
        .unwrap();
    let to = SocketAddr::new(suspect.address().parse().unwrap(), PORT);
    assert!(tokio::time::timeout(QUIET, from.connect(to)).await.is_err());
    assert!(
        inspect(client, &suspect, egress.clone())
            .await
            .unwrap()
            .isolated
    );
    // Compared with other exceptions it is not what was asked for.
    let seen = inspect(client, &suspect, Vec::new()).await.unwrap();
    assert!(!seen.isolated && seen.present && !seen.differences.is_empty());

    // In to one port of the pod: the kubelet's probe.
    let ingress = vec![
        allow(AllowDirection::Ingress, HOST, PORT),
        allow(AllowDirection::Ingress, HOST6, PORT),
    ];
    let replaced = isolate(client, &suspect, ingress.clone()).await.unwrap();
    assert!(replaced.installed && replaced.replaced);
    let found = probe(client, &suspect, &all, &inward).await;
    let outcomes: Vec<ProbeOutcome> = found.iter().map(|(outcome, _)| *outcome).collect();
    let expected = [TimedOut, TimedOut, TimedOut, TimedOut, Connected, Connected];
    assert_eq!(outcomes, expected, "{found:?}");
    assert!(!ping(&suspect, HOST));

    // Nothing at all, not even inside.
    let strict = IsolateRequest {
        drop_loopback: true,
        ..request(&suspect, Vec::new())
    };
    let mut direct = client.clone();
    assert!(
        direct
            .isolate(case(strict))
            .await
            .unwrap()
            .into_inner()
            .replaced
    );
    let found = probe(
        client,
        &suspect,
        &[target("127.0.0.1"), target("::1")],
        &inward,
    )
    .await;
    assert!(
        found.iter().all(|(outcome, _)| *outcome == TimedOut),
        "{found:?}"
    );
    assert!(lift(client, &suspect).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_itself_gets_in_where_its_probes_need_it_and_nobody_else_does() {
    let world = World::isolating().await;
    let client = &world.client;
    let (suspect, neighbour) = (Pod::start("suspect"), Pod::start("neighbour"));
    let inward = [target(&suspect.address()), target(&suspect.address6())];
    until_connected(client, &suspect, &[], &inward).await;
    until_connected(client, &neighbour, &inward, &[]).await;

    let access = NodeAccess {
        pod_addresses: vec![suspect.address(), suspect.address6()],
        ports: vec![PORT.into()],
    };
    let wanted = IsolateRequest {
        node_access: Some(access.clone()),
        ..request(&suspect, Vec::new())
    };
    let mut direct = client.clone();
    let set = direct.isolate(case(wanted)).await.unwrap().into_inner();
    assert_eq!(set.node_addresses, [HOST, HOST6]);
    for (outcome, what) in probe(client, &suspect, &[], &inward).await {
        assert_eq!(outcome, Connected, "{what}");
    }
    for (outcome, what) in probe(client, &neighbour, &inward, &[]).await {
        assert_eq!(outcome, TimedOut, "{what}");
    }
    let mut seen = InspectIsolationRequest {
        pod: Some(suspect.selector.clone()),
        node_access: Some(access),
        ..Default::default()
    };
    let mut inspected = async |request: &InspectIsolationRequest| {
        let answer = direct.inspect_isolation(case(request.clone())).await;
        answer.unwrap().into_inner().isolated
    };
    assert!(inspected(&seen).await);
    seen.node_access = None;
    assert!(!inspected(&seen).await);

    // Out of the pod, its own node is tried at the address that it has there.
    let request = ProbeIsolationRequest {
        pod: Some(suspect.selector.clone()),
        from_node: vec![target(&suspect.address())],
        node_port: 1,
        timeout_ms: 200,
        ..Default::default()
    };
    let probed = client.clone().probe_isolation(case(request)).await;
    let results = probed.unwrap().into_inner().results;
    let tried = results[0].target.clone().unwrap();
    assert!(results[0].from_pod);
    assert_eq!((tried.address.as_str(), tried.port), (HOST, 1));
    assert_eq!(results[0].outcome(), TimedOut);
    assert!(lift(client, &suspect).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_weakened_is_told_and_put_right() {
    let world = World::isolating().await;
    let client = &world.client;
    let suspect = Pod::start("suspect");
    isolate(client, &suspect, Vec::new()).await.unwrap();
    for (change, told) in [
        ("delete table inet impound", None),
        (
            "insert rule inet impound output accept",
            Some("chain output has 3 rules, expected 2"),
        ),
        (
            "flush chain inet impound input",
            Some("chain input has 0 rules, expected 2"),
        ),
        (
            "add chain inet impound input { policy accept; }",
            Some("policy accept"),
        ),
        ("add table inet impound { flags dormant; }", Some("dormant")),
        (
            "add chain inet impound extra { type filter hook input priority 0; }",
            Some("chain extra is not ours"),
        ),
    ] {
        suspect.inside(&["nft", change]);
        let seen = inspect(client, &suspect, Vec::new()).await.unwrap();
        assert!(!seen.isolated, "{change}");
        assert_eq!(seen.present, told.is_some(), "{change}");
        if let Some(told) = told {
            assert!(
                seen.differences.iter().any(|one| one.contains(told)),
                "{:?}",
                seen.differences
            );
        }
        let again = isolate(client, &suspect, Vec::new()).await.unwrap();
        assert!(
            again.installed && again.replaced == told.is_some(),
            "{change}"
        );
        assert!(
            inspect(client, &suspect, Vec::new())
                .await
                .unwrap()
                .isolated,
            "{change}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_get_past_the_table_is_reported() {
    use IsolationWeaknessKind::{NetAdmin, NetRaw, NetRawObtainable, Outside, SysAdmin};
    let world = World::isolating().await;
    let client = &world.client;
    let cases: [(&[&str], &[IsolationWeaknessKind]); 5] = [
        (&["--cap-drop", "ALL"], &[]),
        (
            &["--user", "1000", "--security-opt", "no-new-privileges"],
            &[],
        ),
        (&["--user", "1000"], &[NetRawObtainable]),
        (&[], &[NetRaw]),
        (
            &["--cap-add", "NET_ADMIN", "--cap-add", "SYS_ADMIN"],
            &[NetAdmin, NetRaw, SysAdmin],
        ),
    ];
    for (options, expected) in cases {
        let suspect = Pod::with("suspect", "impound-agent-test", options);
        let set = isolate(client, &suspect, Vec::new()).await.unwrap();
        let seen = inspect(client, &suspect, Vec::new()).await.unwrap();
        let kinds: Vec<_> = set
            .weaknesses
            .iter()
            .map(|weakness| weakness.kind())
            .collect();
        assert_eq!(kinds, expected, "{options:?}: {:?}", set.weaknesses);
        assert_eq!(set.weaknesses, seen.weaknesses);
    }
    let suspect = Pod::with("suspect", "impound-agent-test", &["--cap-drop", "ALL"]);
    let elsewhere = suspect.container("stray", "none");
    let set = isolate(client, &suspect, Vec::new()).await.unwrap();
    let kinds: Vec<_> = set
        .weaknesses
        .iter()
        .map(|weakness| weakness.kind())
        .collect();
    assert_eq!(kinds, [Outside], "{:?}", set.weaknesses);
    assert!(
        set.weaknesses[0].detail.contains("k8s_stray_"),
        "{:?}",
        set.weaknesses
    );
    drop(elsewhere);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_has_left_the_pod_s_network_is_told_by_its_control_group() {
    let world = World::isolating().await;
    let client = &world.client;
    let suspect = Pod::with("suspect", "impound-agent-test", &["--cap-add", "SYS_ADMIN"]);
    isolate(client, &suspect, Vec::new()).await.unwrap();
    let busybox = "/bin/busybox";
    let leave = [busybox, "unshare", "-n", busybox, "sleep", "300"];
    docker(&[&["exec", "-d", suspect.app.id.as_str()], &leave[..]].concat());
    let limit = tokio::time::Instant::now() + Duration::from_secs(20);
    let detail = loop {
        let seen = inspect(client, &suspect, Vec::new()).await.unwrap();
        let mut outside = seen.weaknesses.into_iter();
        let outside = outside.find(|weakness| weakness.kind() == IsolationWeaknessKind::Outside);
        if let Some(outside) = outside {
            break outside.detail;
        }
        assert!(tokio::time::Instant::now() < limit, "it is not told");
    };
    assert!(detail.contains("busybox of container k8s_app_"), "{detail}");
    assert!(detail.contains("so not isolated"), "{detail}");
}
