//! The nftables expressions that our rules are made of, to and from the kernel's form.
//!
//! Every rule works on one register. An expression that is anything else than what we set, even in
//! one field, is read as [`Expression::Other`]: it then differs from every expression of ours.

use std::fmt;

use super::wire::{self, Attributes, Cut, attributes, find, long_number, number};

/// `NFT_REG_1`, and the register that takes verdicts.
const REGISTER: u32 = 1;
const VERDICT_REGISTER: u32 = 0;

/// `NFTA_LIST_ELEM`, `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`.
const ELEMENT: u16 = 1;
const NAME: u16 = 1;
const DATA: u16 = 2;

/// `NFTA_DATA_VALUE`, `NFTA_DATA_VERDICT`, `NFTA_VERDICT_CODE`.
const VALUE: u16 = 1;
const VERDICT: u16 = 2;
const CODE: u16 = 1;

/// Expressions of one rule that are read; the kernel allows 128 (`NFT_RULE_MAXEXPRS`).
const EXPRESSIONS: usize = 128;

/// One step of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::isolate) enum Expression {
    /// Loads something known about the packet.
    Meta(Meta),
    /// Loads `length` bytes of the packet.
    Payload {
        base: Base,
        offset: u32,
        length: u32,
    },
    /// Keeps only these bits of what was loaded.
    Mask(Vec<u8>),
    /// Goes on with the rule only if what was loaded is this.
    Equal(Vec<u8>),
    /// Goes on with the rule only if it is anything else.
    NotEqual(Vec<u8>),
    /// Counts the packets that come this far.
    Counter { packets: u64, bytes: u64 },
    /// Ends the chain.
    Verdict(Verdict),
    /// Nothing of ours.
    Other { name: String, data: Vec<u8> },
}

/// `enum nft_meta_keys`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::isolate) enum Meta {
    InInterface = 4,
    OutInterface = 5,
    Family = 15,
    Transport = 16,
}

/// `enum nft_payload_bases`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::isolate) enum Base {
    Network = 1,
    Transport = 2,
}

/// `NF_DROP`, `NF_ACCEPT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::isolate) enum Verdict {
    Drop = 0,
    Accept = 1,
}

impl Expression {
    pub(in crate::isolate) fn counter() -> Self {
        Self::Counter {
            packets: 0,
            bytes: 0,
        }
    }

    /// The same rule step, whatever was counted.
    pub(in crate::isolate) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Counter { .. }, Self::Counter { .. }) => true,
            _ => self == other,
        }
    }

    fn encode(&self) -> Attributes {
        let data = Attributes::default();
        let value = |value: &[u8]| Attributes::default().bytes(VALUE, value);
        let (name, data) = match self {
            Self::Meta(key) => ("meta", data.number(2, *key as u32).number(1, REGISTER)),
            Self::Payload {
                base,
                offset,
                length,
            } => (
                "payload",
                data.number(1, REGISTER)
                    .number(2, *base as u32)
                    .number(3, *offset)
                    .number(4, *length),
            ),
            Self::Mask(mask) => (
                "bitwise",
                data.number(1, REGISTER)
                    .number(2, REGISTER)
                    .number(3, u32::try_from(mask.len()).unwrap_or(u32::MAX))
                    .nested(4, value(mask))
                    .nested(5, value(&vec![0; mask.len()])),
            ),
            Self::Equal(bytes) | Self::NotEqual(bytes) => (
                "cmp",
                data.number(1, REGISTER)
                    .number(2, u32::from(matches!(self, Self::NotEqual(_))))
                    .nested(3, value(bytes)),
            ),
            Self::Counter { .. } => ("counter", data),
            Self::Verdict(verdict) => {
                let code = Attributes::default().number(CODE, *verdict as u32);
                let verdict = Attributes::default().nested(VERDICT, code);
                (
                    "immediate",
                    data.number(1, VERDICT_REGISTER).nested(2, verdict),
                )
            }
            // Only read, never set: as it came.
            Self::Other { name, data } => {
                return Attributes::default().text(NAME, name).bytes(DATA, data);
            }
        };
        Attributes::default().text(NAME, name).nested(DATA, data)
    }

    fn decode(bytes: &[u8]) -> Result<Self, Cut> {
        let outer = attributes(bytes)?;
        let name = find(&outer, NAME).map(wire::text).unwrap_or_default();
        let data = find(&outer, DATA).unwrap_or_default();
        let fields = Fields(attributes(data)?);
        let known = match name.as_str() {
            "meta" => fields.meta(),
            "payload" => fields.payload(),
            "bitwise" => fields.mask()?,
            "cmp" => fields.comparison()?,
            "counter" => fields.counter(),
            "immediate" => fields.verdict()?,
            _ => None,
        };
        Ok(known.unwrap_or_else(|| Self::Other {
            name,
            data: data.to_vec(),
        }))
    }
}

/// All expressions of a rule, as the value of `NFTA_RULE_EXPRESSIONS`.
pub(super) fn encode(expressions: &[Expression]) -> Attributes {
    expressions
        .iter()
        .fold(Attributes::default(), |list, expression| {
            list.nested(ELEMENT, expression.encode())
        })
}

/// The other way round.
pub(super) fn decode(bytes: &[u8]) -> Result<Vec<Expression>, Cut> {
    attributes(bytes)?
        .into_iter()
        .take(EXPRESSIONS)
        .map(|(_, element)| Expression::decode(element))
        .collect()
}

/// Fields of one expression.
struct Fields<'a>(Vec<(u16, &'a [u8])>);

impl Fields<'_> {
    fn number(&self, kind: u16) -> Option<u32> {
        number(find(&self.0, kind)?)
    }

    fn is(&self, kind: u16, expected: u32) -> Option<()> {
        (self.number(kind)? == expected).then_some(())
    }

    fn value(&self, kind: u16) -> Result<Option<Vec<u8>>, Cut> {
        let Some(nested) = find(&self.0, kind) else {
            return Ok(None);
        };
        Ok(find(&attributes(nested)?, VALUE).map(<[u8]>::to_vec))
    }

    fn meta(&self) -> Option<Expression> {
        self.is(1, REGISTER)?;
        let key = match self.number(2)? {
            4 => Meta::InInterface,
            5 => Meta::OutInterface,
            15 => Meta::Family,
            16 => Meta::Transport,
            _ => return None,
        };
        Some(Expression::Meta(key))
    }

    fn payload(&self) -> Option<Expression> {
        self.is(1, REGISTER)?;
        let base = match self.number(2)? {
            1 => Base::Network,
            2 => Base::Transport,
            _ => return None,
        };
        Some(Expression::Payload {
            base,
            offset: self.number(3)?,
            length: self.number(4)?,
        })
    }

    fn mask(&self) -> Result<Option<Expression>, Cut> {
        let (mask, xor) = (self.value(4)?, self.value(5)?);
        let registers = self.is(1, REGISTER).and(self.is(2, REGISTER));
        // NFTA_BITWISE_OP: absent on old kernels, 0 is mask and xor.
        let masks = self.number(6).unwrap_or(0) == 0;
        let keeps = xor.is_some_and(|xor| xor.iter().all(|byte| *byte == 0));
        Ok(mask
            .filter(|_| registers.is_some() && masks && keeps)
            .map(Expression::Mask))
    }

    fn comparison(&self) -> Result<Option<Expression>, Cut> {
        let value = self.value(3)?.filter(|_| self.is(1, REGISTER).is_some());
        Ok(match (value, self.number(2)) {
            (Some(value), Some(0)) => Some(Expression::Equal(value)),
            (Some(value), Some(1)) => Some(Expression::NotEqual(value)),
            _ => None,
        })
    }

    fn counter(&self) -> Option<Expression> {
        Some(Expression::Counter {
            bytes: long_number(find(&self.0, 1)?)?,
            packets: long_number(find(&self.0, 2)?)?,
        })
    }

    fn verdict(&self) -> Result<Option<Expression>, Cut> {
        let Some(data) = find(&self.0, 2).filter(|_| self.is(1, VERDICT_REGISTER).is_some()) else {
            return Ok(None);
        };
        let Some(verdict) = find(&attributes(data)?, VERDICT) else {
            return Ok(None);
        };
        let code = find(&attributes(verdict)?, CODE).and_then(number);
        Ok(match code {
            Some(0) => Some(Expression::Verdict(Verdict::Drop)),
            Some(1) => Some(Expression::Verdict(Verdict::Accept)),
            _ => None,
        })
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |f: &mut fmt::Formatter<'_>, bytes: &[u8]| {
            bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
        };
        match self {
            Self::Meta(Meta::InInterface) => f.write_str("meta iif"),
            Self::Meta(Meta::OutInterface) => f.write_str("meta oif"),
            Self::Meta(Meta::Family) => f.write_str("meta nfproto"),
            Self::Meta(Meta::Transport) => f.write_str("meta l4proto"),
            Self::Payload {
                base,
                offset,
                length,
            } => {
                let base = match base {
                    Base::Network => "network",
                    Base::Transport => "transport",
                };
                write!(f, "{base} header bytes {offset}+{length}")
            }
            Self::Mask(mask) => {
                f.write_str("& 0x")?;
                hex(f, mask)
            }
            Self::Equal(bytes) => {
                f.write_str("== 0x")?;
                hex(f, bytes)
            }
            Self::NotEqual(bytes) => {
                f.write_str("!= 0x")?;
                hex(f, bytes)
            }
            Self::Counter { packets, bytes } => {
                write!(f, "counter packets {packets} bytes {bytes}")
            }
            Self::Verdict(Verdict::Drop) => f.write_str("drop"),
            Self::Verdict(Verdict::Accept) => f.write_str("accept"),
            Self::Other { name, data } => {
                write!(f, "{} (0x", name.escape_debug())?;
                // Enough to tell two apart.
                hex(f, data.get(..64).unwrap_or(data))?;
                f.write_str(")")
            }
        }
    }
}

#[cfg(test)]
mod tests;
