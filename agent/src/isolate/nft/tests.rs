use super::*;

#[test]
fn comments_are_kept_as_nft_keeps_them() {
    assert_eq!(userdata("loopback"), b"\x00\x09loopback\x00");
    assert_eq!(
        comment(b"\x00\x09loopback\x00").as_deref(),
        Some("loopback")
    );
    let long = "x".repeat(400);
    assert_eq!(comment(&userdata(&long)).unwrap().len(), 254);
    for other in [b"".as_slice(), b"\x00", b"\x01\x02x\x00", b"\x00\x09loop"] {
        assert_eq!(comment(other), None, "{other:?}");
    }
}

#[test]
fn a_chain_is_described_as_nft_describes_it() {
    let base = BaseChain {
        kind: "filter".to_owned(),
        hook: 1,
        priority: -350,
        policy: 0,
    };
    let input = Chain {
        name: "input".to_owned(),
        base: Some(base),
        flags: 0,
        rules: Vec::new(),
    };
    let table = Table {
        name: "impound".to_owned(),
        flags: 0,
        comment: None,
        chains: vec![input.clone()],
    };
    let sent = new_chain(&table, &input);
    let fields = attributes(sent.as_bytes()).unwrap();
    let hook = [8, 0, 1, 0, 0, 0, 0, 1, 8, 0, 2, 0, 0xff, 0xff, 0xfe, 0xa2];
    #[cfg(target_endian = "little")]
    assert_eq!(find(&fields, CHAIN_HOOK), Some(hook.as_slice()));
    assert_eq!(chain(&fields).unwrap(), input);
}

/// Against the kernel itself, in a namespace of the test's own.
#[test]
fn the_kernel_keeps_a_table_as_it_was_set_and_replaces_it_whole() {
    // The thread ends with the test, and its namespace with it.
    std::thread::spawn(|| {
        enter_new_namespace();
        let mut socket = Socket::open().unwrap();
        assert_eq!(socket.table("impound").unwrap(), None);
        let refused = socket.remove("impound").unwrap_err();
        assert!(
            refused.to_string().contains("No such file or directory"),
            "{refused}"
        );
        let first = table("first", 100, 0);
        socket.replace(&first).unwrap();
        let mut socket = Socket::open().unwrap();
        assert_eq!(socket.table("impound").unwrap().as_ref(), Some(&first));
        let second = table("second", 2, 1);
        socket.replace(&second).unwrap();
        assert_eq!(socket.table("impound").unwrap().as_ref(), Some(&second));
        // A transaction that fails at its end leaves what was there.
        let mut broken = table("broken", 3, 0);
        broken.chains.push(broken.chains[0].clone());
        broken.chains[1].name = "bad".to_owned();
        broken.chains[1].base.as_mut().unwrap().hook = 77;
        let mut socket = Socket::open().unwrap();
        assert!(matches!(
            socket.replace(&broken),
            Err(NftError::Kernel { .. })
        ));
        let mut socket = Socket::open().unwrap();
        assert_eq!(socket.table("impound").unwrap().as_ref(), Some(&second));
        socket.remove("impound").unwrap();
        assert_eq!(socket.table("impound").unwrap(), None);
    })
    .join()
    .unwrap();
}

fn table(comment: &str, rules: u32, flags: u32) -> Table {
    use expression::{Base, Meta, Verdict};
    let rule = |number: u32| Rule {
        expressions: vec![
            Expression::Meta(Meta::Transport),
            Expression::Equal(vec![6]),
            Expression::Payload {
                base: Base::Transport,
                offset: 0,
                length: 4,
            },
            Expression::Mask(vec![0xff, 0xff, 0, 0]),
            Expression::NotEqual(number.to_be_bytes().to_vec()),
            Expression::counter(),
            Expression::Verdict(Verdict::Accept),
        ],
        comment: Some(format!("rule {number}")),
    };
    Table {
        name: "impound".to_owned(),
        flags,
        comment: Some(comment.to_owned()),
        chains: vec![Chain {
            name: "output".to_owned(),
            base: Some(BaseChain {
                kind: "filter".to_owned(),
                hook: 3,
                priority: -350,
                policy: 0,
            }),
            flags: 0,
            rules: (0..rules).map(rule).collect(),
        }],
    }
}

/// Moves this thread into the namespace of a program that has just made one.
fn enter_new_namespace() {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    use std::os::fd::AsFd;
    let inode = |path: &str| rustix::fs::stat(path).map(|stat| stat.st_ino);
    let mut child = std::process::Command::new("unshare")
        .args(["--net", "sleep", "60"])
        .spawn()
        .expect("install util-linux for `unshare`");
    let path = format!("/proc/{}/ns/net", child.id());
    while inode(&path) == inode("/proc/self/ns/net") {
        assert!(child.try_wait().unwrap().is_none(), "run the tests as root");
        std::thread::yield_now();
    }
    let namespace = std::fs::File::open(path).unwrap();
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn fuzz_netlink_any_answer_is_taken_apart_or_refused() {
    let base = BaseChain {
        kind: "filter".to_owned(),
        hook: 1,
        priority: -350,
        policy: 0,
    };
    let chain_of = |base| Chain {
        name: "input".to_owned(),
        base,
        flags: 0,
        rules: Vec::new(),
    };
    let table = Table {
        name: "impound".to_owned(),
        flags: 0,
        comment: Some("a comment".to_owned()),
        chains: Vec::new(),
    };
    let operations = vec![
        (
            NEW_TABLE,
            0,
            Attributes::default().text(TABLE_NAME, "impound"),
        ),
        (NEW_CHAIN, 0, new_chain(&table, &chain_of(Some(base)))),
        (NEW_CHAIN, 0, new_chain(&table, &chain_of(None))),
    ];
    // As sent, which is as received; expressions are damaged in tests of their own file's seeds.
    let sent = Messages::transaction(operations).bytes().to_vec();
    impound_fuzz::run("netlink", &[sent], |random, mut bytes| {
        // Behind a length that is right there is more to be found.
        if random.below(2) == 0
            && let Some(length) = bytes.first_chunk_mut::<4>()
        {
            *length = 36_u32.to_ne_bytes();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let before = rest.len();
            let Ok(message) = wire::Received::next(&mut rest) else {
                return;
            };
            assert!(rest.len() < before, "a message takes room");
            let _ = message.errno();
            let Some((_, data)) = message.nftables() else {
                continue;
            };
            let Ok(fields) = attributes(data) else {
                continue;
            };
            let _ = chain(&fields);
            for (_, value) in fields {
                let _ = (comment(value), expression::decode(value));
            }
        }
    });
}
