use super::*;

/// What `nft` 1.0.6 sends for `iif 1 accept`.
const LOOPBACK: &str = "24000180090001006d6574610000000014000280080002000000000408000100000000012c00018008000100636d700020000280080001000000000108000200000000000c0003800800010001000000300001800e000100696d6d6564696174650000001c0002800800010000000000100002800c0002800800010000000001";

/// `ip saddr 10.1.16.0/20 meta l4proto tcp th dport 80 counter accept`
const PERMIT: &str = "24000180090001006d6574610000000014000280080002000000000f08000100000000012c00018008000100636d700020000280080001000000000108000200000000000c0003800500010002000000340001800c0001007061796c6f6164002400028008000100000000010800020000000001080003000000000c0800040000000004440001800c0001006269747769736500340002800800010000000001080002000000000108000300000000040c00048008000100fffff0000c00058008000100000000002c00018008000100636d700020000280080001000000000108000200000000000c000380080001000a01100024000180090001006d6574610000000014000280080002000000001008000100000000012c00018008000100636d700020000280080001000000000108000200000000000c0003800500010006000000340001800c0001007061796c6f6164002400028008000100000000010800020000000002080003000000000208000400000000022c00018008000100636d700020000280080001000000000108000200000000000c0003800600010000500000140001800c000100636f756e7465720004000280300001800e000100696d6d6564696174650000001c0002800800010000000000100002800c0002800800010000000001";

/// `tcp sport 80 tcp flags & (syn|ack) != syn counter accept`; its bitwise says the operation, which
/// ours leaves to the default.
const ANSWERS: &str = "24000180090001006d6574610000000014000280080002000000001008000100000000012c00018008000100636d700020000280080001000000000108000200000000000c0003800500010006000000340001800c0001007061796c6f6164002400028008000100000000010800020000000002080003000000000008000400000000022c00018008000100636d700020000280080001000000000108000200000000000c0003800600010000500000340001800c0001007061796c6f6164002400028008000100000000010800020000000002080003000000000d08000400000000014c0001800c00010062697477697365003c00028008000100000000010800020000000001080006000000000008000300000000010c00048005000100120000000c00058005000100000000002c00018008000100636d700020000280080001000000000108000200000000010c0003800500010002000000140001800c000100636f756e7465720004000280300001800e000100696d6d6564696174650000001c0002800800010000000000100002800c0002800800010000000001";

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

fn load(base: Base, offset: u32, length: u32) -> Expression {
    Expression::Payload {
        base,
        offset,
        length,
    }
}

#[cfg(target_endian = "little")]
#[test]
fn rules_are_sent_byte_for_byte_as_nft_sends_them() {
    let loopback = [
        Expression::Meta(Meta::InInterface),
        Expression::Equal(1_u32.to_ne_bytes().to_vec()),
        Expression::Verdict(Verdict::Accept),
    ];
    assert_eq!(encode(&loopback).as_bytes(), bytes(LOOPBACK));
    let permit = [
        Expression::Meta(Meta::Family),
        Expression::Equal(vec![2]),
        load(Base::Network, 12, 4),
        Expression::Mask(vec![0xff, 0xff, 0xf0, 0]),
        Expression::Equal(vec![10, 1, 16, 0]),
        Expression::Meta(Meta::Transport),
        Expression::Equal(vec![6]),
        load(Base::Transport, 2, 2),
        Expression::Equal(vec![0, 80]),
        Expression::counter(),
        Expression::Verdict(Verdict::Accept),
    ];
    assert_eq!(encode(&permit).as_bytes(), bytes(PERMIT));
}

#[cfg(target_endian = "little")]
#[test]
fn what_nft_sends_is_read_as_what_it_means() {
    // The kernel adds counts when it lists; a counter without them is not ours.
    let counted = |expressions: Vec<Expression>| {
        let other =
            |one: &Expression| matches!(one, Expression::Other { name, .. } if name == "counter");
        expressions
            .into_iter()
            .filter(|one| !other(one))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        counted(decode(&bytes(ANSWERS)).unwrap()),
        [
            Expression::Meta(Meta::Transport),
            Expression::Equal(vec![6]),
            load(Base::Transport, 0, 2),
            Expression::Equal(vec![0, 80]),
            load(Base::Transport, 13, 1),
            Expression::Mask(vec![0x12]),
            Expression::NotEqual(vec![2]),
            Expression::Verdict(Verdict::Accept),
        ]
    );
}

#[test]
fn an_expression_that_differs_in_one_field_is_none_of_ours() {
    let list = |name: &str, data: Attributes| {
        let expression = Attributes::default().text(NAME, name).nested(DATA, data);
        Attributes::default().nested(ELEMENT, expression)
    };
    let fields = Attributes::default;
    let value = |bytes: &[u8]| Attributes::default().bytes(VALUE, bytes);
    for strange in [
        // Another register, another key, a key that is set instead of loaded.
        list("meta", fields().number(2, 4).number(1, 2)),
        list("meta", fields().number(2, 3).number(1, 1)),
        list("meta", fields().number(2, 4).number(3, 1)),
        // "Less than".
        list(
            "cmp",
            fields().number(1, 1).number(2, 2).nested(3, value(&[1])),
        ),
        // A shift; a mask that then sets a bit.
        list(
            "bitwise",
            fields().number(1, 1).number(2, 1).number(3, 1).number(6, 1),
        ),
        list(
            "bitwise",
            fields()
                .number(1, 1)
                .number(2, 1)
                .number(3, 1)
                .nested(4, value(&[1]))
                .nested(5, value(&[1])),
        ),
        // A jump; a value for a register.
        list(
            "immediate",
            fields().number(1, 0).nested(
                2,
                fields().nested(2, fields().number(1, (-3_i32).cast_unsigned())),
            ),
        ),
        list("immediate", fields().number(1, 1).nested(2, value(&[0; 4]))),
        list("counter", fields()),
        list(
            "payload",
            fields().number(1, 1).number(2, 0).number(3, 0).number(4, 6),
        ),
        list("queue", fields().number(1, 0)),
    ] {
        let found = decode(strange.as_bytes()).unwrap();
        assert!(
            matches!(found.as_slice(), [Expression::Other { .. }]),
            "{found:?}"
        );
    }
}

#[test]
fn counts_are_read_and_do_not_make_a_rule_another_one() {
    let data = Attributes::default()
        .bytes(1, &180_u64.to_be_bytes())
        .bytes(2, &3_u64.to_be_bytes());
    let expression = Attributes::default()
        .text(NAME, "counter")
        .nested(DATA, data);
    let list = Attributes::default().nested(ELEMENT, expression);
    let found = decode(list.as_bytes()).unwrap();
    let counted = Expression::Counter {
        packets: 3,
        bytes: 180,
    };
    assert_eq!(found, std::slice::from_ref(&counted));
    assert!(counted.same(&Expression::counter()));
    assert_eq!(counted.to_string(), "counter packets 3 bytes 180");
}

#[test]
fn no_cut_list_is_read_as_a_shorter_one() {
    let whole = bytes(PERMIT);
    let all = decode(&whole).unwrap().len();
    for end in 1..whole.len() {
        if let Ok(found) = decode(&whole[..end]) {
            // Only between two expressions is a beginning well formed.
            assert!(found.len() < all && end % 4 == 0, "{end}");
        }
    }
}

#[test]
fn fuzz_expression_any_rule_is_read_or_refused_and_told_on_one_line() {
    let seeds = [LOOPBACK, PERMIT, ANSWERS].map(bytes);
    impound_fuzz::run("expression", &seeds, |_, rule| {
        for expression in decode(&rule).unwrap_or_default() {
            assert!(expression.same(&expression));
            let told = expression.to_string();
            assert!(!told.contains(char::is_control), "{told:?}");
        }
    });
}
