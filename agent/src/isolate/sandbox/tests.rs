use super::*;

fn container(kind: &str, uid: &str, state: State) -> Container {
    let labels = [
        ("io.kubernetes.docker.type", kind),
        ("io.kubernetes.pod.namespace", "shop"),
        ("io.kubernetes.pod.name", "web"),
        ("io.kubernetes.pod.uid", uid),
    ];
    Container {
        id: ContainerId::parse(&"ab".repeat(32)).unwrap(),
        name: format!("k8s_{kind}_web_shop_{uid}_0"),
        image: String::new(),
        image_id: String::new(),
        state,
        created: std::time::SystemTime::UNIX_EPOCH,
        labels: labels
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
    }
}

fn pod() -> Pod {
    Pod {
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        uid: "u1".to_owned(),
    }
}

#[test]
fn exactly_one_running_sandbox_of_exactly_this_pod_is_taken() {
    use State::{Exited, Paused, Running};
    let sandbox = |uid, state| container("podsandbox", uid, state);
    let app = |uid, state| container("container", uid, state);
    let unlabelled = Container {
        labels: std::collections::HashMap::new(),
        ..app("u1", Running)
    };

    let all = [
        sandbox("u2", Running),
        sandbox("u1", Exited),
        app("u1", Running),
        sandbox("u1", Running),
    ];
    let (chosen, others) = choose(&pod(), &all).unwrap();
    assert_eq!((chosen.state, others.len()), (Running, 1));
    assert!(std::ptr::eq(chosen, &all[3]));
    let paused = [sandbox("u1", Paused), app("u1", Exited)];
    let (_, others) = choose(&pod(), &paused).unwrap();
    assert!(others.is_empty());

    let refused = |all: &[Container]| choose(&pod(), all).map(drop).unwrap_err();
    assert!(matches!(refused(&[]), IsolateError::UnknownPod { .. }));
    assert!(matches!(
        refused(&[unlabelled]),
        IsolateError::UnknownPod { .. }
    ));
    assert!(matches!(
        refused(&[sandbox("u2", Running)]),
        IsolateError::OtherUid { found, .. } if found == "u2"
    ));
    assert!(matches!(
        refused(&[
            sandbox("u2", Running),
            sandbox("u1", Exited),
            app("u1", Running)
        ]),
        IsolateError::NoSandbox { .. }
    ));
    assert!(matches!(
        refused(&[sandbox("u1", Running), sandbox("u1", Running)]),
        IsolateError::SeveralSandboxes { count: 2, .. }
    ));
}

#[test]
fn fuzz_sandbox_any_description_is_read_or_refused() {
    let seed = br#"{"State":{"Running":true,"Pid":4242,"StartedAt":"2026-01-31T03:04:05Z"},"HostConfig":{"NetworkMode":"container:4e5e"}}"#;
    impound_fuzz::run("sandbox", &[seed.to_vec()], |_, bytes| {
        if let Ok(description) = serde_json::from_slice::<Description>(&bytes) {
            // What was read says what was written: no field is made up.
            let text = String::from_utf8_lossy(&bytes);
            assert!(text.contains("State") && text.contains("HostConfig"));
            assert!(description.state == description.state);
        }
    });
}
