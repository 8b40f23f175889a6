//! How large the parts of an upload are. An object's length is not known before its end, a part's
//! bytes are in memory until the store has them, and there are at most 10 000: so they grow.

const MIB: u64 = 1 << 20;

/// Most parts of one upload; a rule of the protocol.
pub(super) const MOST: u32 = 10_000;

/// Bytes of part `number`, counted from 1. The smallest part that is not the last has 5 MiB.
pub(super) fn size(number: u32) -> u64 {
    match number {
        ..=1000 => 5 * MIB,
        1001..=3000 => 8 * MIB,
        3001..=5000 => 16 * MIB,
        5001..=7000 => 32 * MIB,
        _ => 64 * MIB,
    }
}

/// Bytes of the largest object.
pub(super) fn most_bytes() -> u64 {
    (1..=MOST).map(size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_only_grow_and_hold_more_than_any_container_of_a_node() {
        assert!((1..MOST).all(|number| size(number) <= size(number + 1)));
        assert_eq!(most_bytes() / (1 << 30), 301);
        // Memory stays small as long as objects are.
        let first: u64 = (1..=5000).map(size).sum();
        assert!(size(5000) == 16 * MIB && first > 50 << 30);
    }
}
