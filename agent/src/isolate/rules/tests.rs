use super::*;

fn allow(direction: Direction, protocol: Protocol, cidr: &str, port: Option<u16>) -> Allow {
    Allow {
        direction,
        cidr: cidr.parse().unwrap(),
        protocol,
        port,
    }
}

fn isolating(allow: Vec<Allow>) -> Table {
    let exceptions = Exceptions {
        allow,
        drop_loopback: false,
    };
    table(&exceptions, "impound".to_owned())
}

fn lines(table: &Table, chain: &str) -> Vec<String> {
    let chain = table.chains.iter().find(|one| one.name == chain).unwrap();
    chain.rules.iter().map(steps).collect()
}

#[test]
fn without_exceptions_only_loopback_passes() {
    let table = isolating(Vec::new());
    let drop = "counter packets 0 bytes 0 drop";
    #[cfg(target_endian = "little")]
    assert_eq!(
        lines(&table, "input"),
        ["meta iif == 0x01000000 accept", drop]
    );
    #[cfg(target_endian = "little")]
    assert_eq!(
        lines(&table, "output"),
        ["meta oif == 0x01000000 accept", drop]
    );
    assert_eq!(lines(&table, "forward"), [drop]);
    for chain in &table.chains {
        let base = chain.base.as_ref().unwrap();
        assert_eq!(
            (base.policy, base.priority, base.kind.as_str()),
            (0, -350, "filter")
        );
    }
    let strict = super::table(
        &Exceptions {
            allow: Vec::new(),
            drop_loopback: true,
        },
        String::new(),
    );
    for chain in ["input", "forward", "output"] {
        assert_eq!(lines(&strict, chain), [drop]);
    }
}

#[test]
fn a_permitted_connection_has_answers_but_no_way_back() {
    let table = isolating(vec![allow(
        Direction::Egress,
        Protocol::Tcp,
        "10.1.16.0/20",
        Some(443),
    )]);
    assert_eq!(
        lines(&table, "output")[1],
        "meta nfproto == 0x02 network header bytes 16+4 & 0xfffff000 == 0x0a011000 meta l4proto == 0x06 \
         transport header bytes 2+2 == 0x01bb counter packets 0 bytes 0 accept"
    );
    assert_eq!(
        lines(&table, "input")[1],
        "meta nfproto == 0x02 network header bytes 12+4 & 0xfffff000 == 0x0a011000 meta l4proto == 0x06 \
         transport header bytes 0+2 == 0x01bb transport header bytes 13+1 & 0x12 != 0x02 \
         counter packets 0 bytes 0 accept"
    );
    assert_eq!(lines(&table, "forward").len(), 1);
}

#[test]
fn ipv6_and_any_port_are_told_apart_from_the_rest() {
    let table = isolating(vec![allow(
        Direction::Ingress,
        Protocol::Udp,
        "fd00::/64",
        None,
    )]);
    let (input, output) = (lines(&table, "input"), lines(&table, "output"));
    assert_eq!(
        input[1],
        "meta nfproto == 0x0a meta l4proto == 0x3a transport header bytes 0+1 == 0x87 counter packets 0 \
         bytes 0 accept"
    );
    let address = "& 0xffffffffffffffff0000000000000000 == 0xfd000000000000000000000000000000";
    let rest = "meta l4proto == 0x11 counter packets 0 bytes 0 accept";
    assert_eq!(
        input[3],
        format!("meta nfproto == 0x0a network header bytes 8+16 {address} {rest}")
    );
    assert_eq!(
        output[3],
        format!("meta nfproto == 0x0a network header bytes 24+16 {address} {rest}")
    );
    let any = isolating(vec![allow(
        Direction::Egress,
        Protocol::Udp,
        "0.0.0.0/0",
        Some(53),
    )]);
    assert_eq!(
        lines(&any, "output")[1],
        "meta nfproto == 0x02 meta l4proto == 0x11 transport header bytes 2+2 == 0x0035 counter packets 0 \
         bytes 0 accept"
    );
}

#[test]
fn every_way_to_weaken_a_table_is_a_difference() {
    let wanted = isolating(vec![allow(
        Direction::Egress,
        Protocol::Tcp,
        "10.0.0.1",
        Some(443),
    )]);
    assert_eq!(differences(&wanted, &wanted), Vec::<String>::new());
    let changed = |change: &dyn Fn(&mut Table)| {
        let mut table = wanted.clone();
        change(&mut table);
        differences(&wanted, &table)
    };
    let base = |table: &mut Table, change: &dyn Fn(&mut BaseChain)| {
        change(table.chains[0].base.as_mut().unwrap());
    };
    let cases: Vec<(&str, Vec<String>)> = vec![
        ("dormant", changed(&|table| table.flags = 1)),
        (
            "chain output is missing",
            changed(&|table| drop(table.chains.pop())),
        ),
        (
            "chain extra is not ours",
            changed(&|table| {
                let mut extra = table.chains[0].clone();
                extra.name = "extra".to_owned();
                table.chains.push(extra);
            }),
        ),
        (
            "policy accept",
            changed(&|table| base(table, &|base| base.policy = 1)),
        ),
        (
            "priority 100",
            changed(&|table| base(table, &|base| base.priority = 100)),
        ),
        (
            "hook 0",
            changed(&|table| base(table, &|base| base.hook = 0)),
        ),
        (
            "without a hook",
            changed(&|table| table.chains[0].base = None),
        ),
        ("flags 2", changed(&|table| table.chains[0].flags = 2)),
        (
            "2 rules, expected 3",
            changed(&|table| drop(table.chains[0].rules.remove(0))),
        ),
        (
            "4 rules, expected 3",
            changed(&|table| {
                let first = table.chains[0].rules[0].clone();
                table.chains[0].rules.push(first);
            }),
        ),
        (
            "rule 3 of chain input",
            changed(&|table| {
                table.chains[0].rules[2].expressions[1] = Expression::Verdict(Verdict::Accept);
            }),
        ),
        (
            "rule 3 of chain output",
            changed(&|table| drop(table.chains[2].rules[2].expressions.pop())),
        ),
    ];
    for (expected, found) in cases {
        assert!(
            found.iter().any(|one| one.contains(expected)),
            "{expected}: {found:?}"
        );
    }
    let harmless = changed(&|table| {
        table.comment = None;
        table.chains[0].rules[0].comment = Some("x".to_owned());
        table.chains[0].rules[2].expressions[0] = Expression::Counter {
            packets: 9,
            bytes: 9,
        };
        table.chains.reverse();
    });
    assert_eq!(harmless, Vec::<String>::new());
}

#[test]
fn text_is_bounded_and_escapes_what_the_pod_may_have_written() {
    let mut table = isolating(Vec::new());
    assert_eq!(text(&table)[0], "table inet impound flags 0 # impound");
    assert_eq!(
        text(&table)[1],
        "chain input: type filter hook input priority -350 policy drop"
    );
    table.comment = Some("\u{1b}[2J\n".to_owned());
    assert_eq!(
        text(&table)[0],
        "table inet impound flags 0 # \\u{1b}[2J\\n"
    );
    let rule = table.chains[0].rules[0].clone();
    table.chains[0].rules = vec![rule; 5000];
    let lines = text(&table);
    assert_eq!(lines.len(), LINES + 1);
    assert!(lines[LINES].starts_with("and ") && lines[LINES].ends_with(" lines more"));
}

#[test]
fn what_the_last_rule_counted_was_dropped() {
    let mut table = isolating(Vec::new());
    table.chains[0].rules[1].expressions[0] = Expression::Counter {
        packets: 3,
        bytes: 180,
    };
    assert_eq!(dropped(&table, "input"), (3, 180));
    assert_eq!(
        (dropped(&table, "output"), dropped(&table, "none")),
        ((0, 0), (0, 0))
    );
}
