//! nftables tables of one network namespace, read and written through the kernel's netlink socket.
//!
//! Written here rather than taken from a crate: `rustables` needs libclang and is GPL, `nftnl` needs
//! C libraries, `nftables` runs the program `nft`, and the netlink packet crates have no counters.
//! What the agent needs is one transaction and three lists.
//!
//! A [`Socket`] belongs to the namespace of the thread that opened it, for good: [`Socket::open`] is
//! only to be called inside [`NetworkNamespace::run`](super::namespace::NetworkNamespace::run).

pub(super) mod expression;
mod socket;
mod wire;

use std::io;

use expression::Expression;
use wire::{ACK, APPEND, Attributes, CREATE, DUMP, Messages, attributes, find, number, text};

pub(super) use socket::{ATTEMPTS, Socket};
pub(crate) use wire::Cut;

/// `enum nf_tables_msg_types`.
const NEW_TABLE: u8 = 0;
const GET_TABLE: u8 = 1;
const DELETE_TABLE: u8 = 2;
const NEW_CHAIN: u8 = 3;
const GET_CHAIN: u8 = 4;
const NEW_RULE: u8 = 6;
const GET_RULE: u8 = 7;

/// `NFTA_TABLE_*`.
const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const TABLE_USERDATA: u16 = 6;

/// `NFTA_CHAIN_*`.
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const CHAIN_FLAGS: u16 = 10;

/// `NFTA_HOOK_*`.
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;

/// `NFTA_RULE_*`.
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;

/// `NFT_CHAIN_BASE`: newer kernels report it, older ones do not.
const BASE_CHAIN: u32 = 1;

/// Chains and rules that are read. Ours has 3 chains and at most some 400 rules; more is somebody's
/// attempt to make us read for ever.
const CHAINS: usize = 1024;
const RULES: usize = 16 << 10;

/// Longest comment, with its zero byte: the length is one byte, as `nft` writes it.
const COMMENT: usize = 255;

/// A table as it is in the kernel, or as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) name: String,
    /// 0 for a table in force; 1 is dormant: there, but not looked at.
    pub(super) flags: u32,
    pub(super) comment: Option<String>,
    pub(super) chains: Vec<Chain>,
}

/// A chain of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: String,
    /// None: only reached by jumps.
    pub(super) base: Option<BaseChain>,
    /// Beyond being a base chain, e.g. 2: offloaded.
    pub(super) flags: u32,
    pub(super) rules: Vec<Rule>,
}

/// Where packets come into a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BaseChain {
    /// "filter"
    pub(super) kind: String,
    /// `enum nf_inet_hooks`.
    pub(super) hook: u32,
    /// Lower comes earlier.
    pub(super) priority: i32,
    /// Verdict on what no rule decided: 0 drops.
    pub(super) policy: u32,
}

/// A rule of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) expressions: Vec<Expression>,
    pub(super) comment: Option<String>,
}

impl Socket {
    /// The table of this name in the family inet.
    pub(super) fn table(&mut self, name: &str) -> Result<Option<Table>, NftError> {
        let by_name = Attributes::default().text(TABLE_NAME, name);
        let request = Messages::one(GET_TABLE, ACK, by_name);
        let found = match self.exchange(&request, "reading the table") {
            Err(NftError::Kernel { errno, .. })
                if errno == rustix::io::Errno::NOENT.raw_os_error() =>
            {
                return Ok(None);
            }
            other => other?,
        };
        let mut table = None;
        for (operation, data) in &found {
            if *operation == NEW_TABLE {
                let data = attributes(data)?;
                table = Some(Table {
                    name: name.to_owned(),
                    flags: find(&data, TABLE_FLAGS).and_then(number).unwrap_or(0),
                    comment: find(&data, TABLE_USERDATA).and_then(comment),
                    chains: self.chains(name)?,
                });
            }
        }
        let Some(mut table) = table else {
            return Err(NftError::Unexpected {
                what: format!("no table in the answer about table {name}"),
            });
        };
        for (chain, rule) in self.rules(name)? {
            let chain = table.chains.iter_mut().find(|one| one.name == chain);
            // A chain that came between the two lists: the table is not what it was.
            let chain = chain.ok_or(NftError::Interrupted)?;
            chain.rules.push(rule);
        }
        Ok(Some(table))
    }

    /// Puts `table` in the place of whatever has its name, in one step: there is no moment between
    /// the old rules and the new ones.
    pub(super) fn replace(&mut self, table: &Table) -> Result<(), NftError> {
        let name = || Attributes::default().text(TABLE_NAME, &table.name);
        let mut description = name().number(TABLE_FLAGS, table.flags);
        if let Some(comment) = &table.comment {
            description = description.bytes(TABLE_USERDATA, &userdata(comment));
        }
        let mut operations = vec![
            // So that there is one to delete.
            (NEW_TABLE, CREATE, name()),
            (DELETE_TABLE, 0, name()),
            (NEW_TABLE, CREATE, description),
        ];
        let chains = table.chains.iter();
        operations.extend(chains.map(|chain| (NEW_CHAIN, CREATE, new_chain(table, chain))));
        for chain in &table.chains {
            let rules = chain.rules.iter().map(|rule| new_rule(table, chain, rule));
            operations.extend(rules.map(|rule| (NEW_RULE, CREATE | APPEND, rule)));
        }
        self.exchange(&Messages::transaction(operations), "replacing the table")?;
        Ok(())
    }

    /// Removes the table, with all its chains and rules.
    pub(super) fn remove(&mut self, name: &str) -> Result<(), NftError> {
        let by_name = Attributes::default().text(TABLE_NAME, name);
        let transaction = Messages::transaction(vec![(DELETE_TABLE, 0, by_name)]);
        self.exchange(&transaction, "removing the table")?;
        Ok(())
    }

    fn chains(&mut self, table: &str) -> Result<Vec<Chain>, NftError> {
        let all = Messages::one(GET_CHAIN, DUMP, Attributes::default());
        let mut chains = Vec::new();
        for (_, data) in self.exchange(&all, "listing the chains")? {
            let data = attributes(&data)?;
            if find(&data, CHAIN_TABLE).map(text).as_deref() != Some(table) {
                continue;
            }
            if chains.len() == CHAINS {
                return Err(NftError::TooMany {
                    what: "chains",
                    limit: CHAINS,
                });
            }
            chains.push(chain(&data)?);
        }
        Ok(chains)
    }

    /// Rules with the name of their chain.
    fn rules(&mut self, table: &str) -> Result<Vec<(String, Rule)>, NftError> {
        let by_table = Attributes::default().text(RULE_TABLE, table);
        let mut rules = Vec::new();
        for (_, data) in self.exchange(
            &Messages::one(GET_RULE, DUMP, by_table),
            "listing the rules",
        )? {
            let data = attributes(&data)?;
            // Old kernels list every table's rules.
            if find(&data, RULE_TABLE).map(text).as_deref() != Some(table) {
                continue;
            }
            if rules.len() == RULES {
                return Err(NftError::TooMany {
                    what: "rules",
                    limit: RULES,
                });
            }
            let chain = find(&data, RULE_CHAIN).map(text).unwrap_or_default();
            let expressions = find(&data, RULE_EXPRESSIONS).unwrap_or_default();
            let rule = Rule {
                expressions: expression::decode(expressions)?,
                comment: find(&data, RULE_USERDATA).and_then(comment),
            };
            rules.push((chain, rule));
        }
        Ok(rules)
    }
}

fn new_chain(table: &Table, chain: &Chain) -> Attributes {
    let description = Attributes::default()
        .text(CHAIN_TABLE, &table.name)
        .text(CHAIN_NAME, &chain.name);
    let Some(base) = &chain.base else {
        return description;
    };
    let hook = Attributes::default()
        .number(HOOK_NUMBER, base.hook)
        .number(HOOK_PRIORITY, base.priority.cast_unsigned());
    description
        .nested(CHAIN_HOOK, hook)
        .number(CHAIN_POLICY, base.policy)
        .text(CHAIN_TYPE, &base.kind)
}

fn new_rule(table: &Table, chain: &Chain, rule: &Rule) -> Attributes {
    let description = Attributes::default()
        .text(RULE_TABLE, &table.name)
        .text(RULE_CHAIN, &chain.name)
        .nested(RULE_EXPRESSIONS, expression::encode(&rule.expressions));
    match &rule.comment {
        Some(comment) => description.bytes(RULE_USERDATA, &userdata(comment)),
        None => description,
    }
}

fn chain(data: &[(u16, &[u8])]) -> Result<Chain, NftError> {
    let base = match find(data, CHAIN_HOOK) {
        None => None,
        Some(hook) => {
            let hook = attributes(hook)?;
            let field = |kind| find(&hook, kind).and_then(number);
            Some(BaseChain {
                kind: find(data, CHAIN_TYPE).map(text).unwrap_or_default(),
                // A value that no chain of ours has, should the kernel leave it out.
                hook: field(HOOK_NUMBER).unwrap_or(u32::MAX),
                priority: field(HOOK_PRIORITY).map_or(i32::MAX, u32::cast_signed),
                policy: find(data, CHAIN_POLICY)
                    .and_then(number)
                    .unwrap_or(u32::MAX),
            })
        }
    };
    Ok(Chain {
        name: find(data, CHAIN_NAME).map(text).unwrap_or_default(),
        base,
        flags: find(data, CHAIN_FLAGS).and_then(number).unwrap_or(0) & !BASE_CHAIN,
        rules: Vec::new(),
    })
}

/// A comment as `nft` keeps it in user data, which the kernel stores unread: type 0, length, text,
/// zero byte.
fn userdata(comment: &str) -> Vec<u8> {
    let mut bytes: Vec<u8> = comment.bytes().take(COMMENT - 1).collect();
    bytes.push(0);
    let length = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
    [vec![0, length], bytes].concat()
}

/// The other way round; `None` for user data of any other kind.
fn comment(userdata: &[u8]) -> Option<String> {
    match userdata {
        [0, length, rest @ ..] => rest.get(..usize::from(*length)).map(text),
        _ => None,
    }
}

/// Why the kernel's rules could not be read or set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NftError {
    /// The socket.
    #[error("the kernel's netfilter socket failed at {step}")]
    Socket {
        /// What was tried.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It said no.
    #[error("the kernel refused {what} in the pod's network namespace: {}", io::Error::from_raw_os_error(*errno))]
    Kernel {
        /// What was asked for.
        what: &'static str,
        /// Its reason.
        errno: i32,
    },
    /// Not in netlink's format.
    #[error("the kernel's answer is not understood")]
    Cut(#[from] Cut),
    /// Not what was asked for.
    #[error("the kernel's answer is not understood: {what}")]
    Unexpected {
        /// What was found.
        what: String,
    },
    /// Somebody else sets rules.
    #[error(
        "the rules changed while they were read, {ATTEMPTS} times in a row: somebody sets rules in this pod"
    )]
    Interrupted,
    /// More than can be ours.
    #[error("expected at most {limit} {what}, there are more: somebody filled the pod's tables")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
}

#[cfg(test)]
mod tests;
