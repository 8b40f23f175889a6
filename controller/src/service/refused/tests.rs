use impound_evidence::SigningKey;

use super::*;
use crate::store::directory::DirectoryStore;

struct Scene {
    _dir: tempfile::TempDir,
    custody: Arc<CustodyAppender>,
    refusals: Arc<Refusals>,
    case: CaseId,
}

impl Scene {
    async fn new(pause: Duration, most: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(DirectoryStore::open(dir.path()).unwrap());
        let key = Arc::new(SigningKey::generate().unwrap());
        let custody = Arc::new(CustodyAppender::new(store.clone(), key, Vec::new()));
        let case: CaseId = "INC-1".parse().unwrap();
        let known = Entry::new(Event::Requested, "ada", "web");
        custody.append_to_case(&case, vec![known]).await.unwrap();
        Self {
            refusals: Refusals::with(store, custody.clone(), pause, most),
            custody,
            case,
            _dir: dir,
        }
    }

    async fn refuse(&self, who: &str, call: &'static str, case: &str, why: &str) {
        let refusal = Refusal {
            who,
            certificate: Some(Sha256::of(who.as_bytes())),
            call,
            case,
            why,
        };
        self.refusals.note(refusal).await;
    }

    /// Who, what and why of every refusal in the log, without times.
    async fn log(&self) -> Vec<(String, String, String)> {
        let entries = self.custody.of_case(&self.case).await.unwrap();
        let refused = entries
            .into_iter()
            .filter(|entry| entry.event == Event::Refused);
        refused
            .map(|entry| {
                let why = entry.why.unwrap();
                let why = match (why.split_once(" until "), why.find(['Z'])) {
                    (Some((before, _)), Some(end)) => format!("{before}{}", &why[end + 1..]),
                    _ => why,
                };
                (entry.who, entry.what, why)
            })
            .collect()
    }
}

fn line(who: &str, what: &str, why: &str) -> (String, String, String) {
    (who.to_owned(), what.to_owned(), why.to_owned())
}

#[tokio::test]
async fn a_refusal_is_written_at_once_and_its_repetitions_are_counted() {
    let scene = Scene::new(Duration::from_secs(3600), 10).await;
    for n in 0..50 {
        scene
            .refuse("eve", "read", "INC-1", &format!("no, {n}"))
            .await;
    }
    scene.refuse("eve", "release", "INC-1", "no").await;
    scene.refuse("eve", "read", "INC-2", "no").await;
    scene.refuse("eve", "read", "../INC-1", "no").await;
    let at_once = [line("eve", "read", "no, 0"), line("eve", "release", "no")];
    assert_eq!(scene.log().await, at_once);
    scene.refusals.finish().await;
    let all = [
        &at_once[..],
        &[line("eve", "read", "and 49 more of the same: no, 49")],
    ]
    .concat();
    assert_eq!(scene.log().await, all);
}

#[tokio::test]
async fn what_goes_on_is_written_again_without_being_asked() {
    let scene = Scene::new(Duration::from_millis(100), 10).await;
    scene.refuse("eve", "read", "INC-1", "no").await;
    scene.refuse("eve", "read", "INC-1", "no").await;
    let limit = Instant::now() + Duration::from_secs(30);
    while scene.log().await.len() < 2 {
        assert!(Instant::now() < limit, "{:?}", scene.log().await);
        tokio::task::yield_now().await;
    }
    let expected = [
        line("eve", "read", "no"),
        line("eve", "read", "and 1 more of the same: no"),
    ];
    assert_eq!(scene.log().await[..2], expected);
}

#[tokio::test]
async fn more_than_can_be_told_apart_are_counted_all_the_same() {
    let scene = Scene::new(Duration::from_secs(3600), 3).await;
    for n in 0..10 {
        scene
            .refuse(&format!("eve-{n}"), "read", "INC-1", "no")
            .await;
    }
    scene.refusals.finish().await;
    let log = scene.log().await;
    let expected = [
        line("eve-0", "read", "no"),
        line("eve-1", "read", "no"),
        line("eve-2", "read", "no"),
        line(
            &PeerId::Controller.to_string(),
            "requests of several callers",
            "7, too many to tell apart; the last one: no",
        ),
    ];
    assert_eq!(log, expected);
}

#[tokio::test]
async fn cases_that_do_not_exist_take_no_room_from_those_that_do() {
    let scene = Scene::new(Duration::from_secs(3600), 3).await;
    for n in 0..100 {
        scene
            .refuse("eve", "read", &format!("INC-0{n}"), "no")
            .await;
    }
    scene.refuse("eve", "read", "INC-1", "no").await;
    assert_eq!(scene.log().await, [line("eve", "read", "no")]);
}
