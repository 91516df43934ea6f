//! Chains of others that drop forwarded packets: docker's, a firewall's, an administrator's.
//!
//! Every base chain at the forward hook sees a packet, and one that drops it wins: accepting in our own
//! table cannot help. A chain whose policy is to drop must itself accept what comes from and goes to
//! our bridge. Rules that do so are found by what they compare, whoever wrote them; those written here
//! carry a mark, to be found again and removed.
//!
//! Not seen: a rule that drops explicitly, and chains of the old iptables that is not nf_tables.

use super::abi;
use super::encode::{Expression, interface_name};
use super::load::{Nft, gone_with_nf_tables};
use crate::error::Error;
use crate::netlink::netfilter::Writer;
use crate::netlink::socket::attributes_of;

/// A chain that drops what it does not accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    family: u8,
    table: String,
    name: String,
}

/// A rule, as far as it matters here.
#[derive(Debug, Default)]
struct Rule {
    chain: String,
    handle: Vec<u8>,
    expressions: Vec<u8>,
    mark: Vec<u8>,
}

impl std::fmt::Display for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let family = match self.family {
            abi::FAMILY_IPV4 => "ip",
            abi::FAMILY_IPV6 => "ip6",
            _ => "inet",
        };
        write!(f, "{family} {} {}", self.table, self.name)
    }
}

impl Nft {
    /// Chains that drop forwarded packets and do not accept those of this bridge.
    pub(crate) fn forward_drops(&mut self, bridge: &str, ipv6: bool) -> Result<Vec<Chain>, Error> {
        let mut blocking = Vec::new();
        for chain in self.dropping_chains()? {
            let concerned = ipv6 || chain.family != abi::FAMILY_IPV6;
            if concerned && !self.admits(&chain, bridge)? {
                blocking.push(chain);
            }
        }
        Ok(blocking)
    }

    /// Puts rules at the head of a chain that accept what comes from and goes to the bridge.
    pub(crate) fn admit(&mut self, chain: &Chain, bridge: &str) -> Result<(), Error> {
        let name = interface_name(bridge);
        let mark = self.mark();
        self.commit_to(&chain.table, |batch| {
            for key in [abi::META_IIFNAME, abi::META_OIFNAME] {
                let rule = [
                    Expression::Meta { key, to: 0 },
                    Expression::Compare { register: 0, equal: true, value: &name },
                    Expression::Counter,
                    Expression::Accept,
                ];
                batch.insert_rule(chain.family, &chain.name, &rule, &mark);
            }
        })
    }

    /// Removes the rules this table's daemon has put into chains of others.
    pub(crate) fn withdraw(&mut self) -> Result<(), Error> {
        let mark = self.mark();
        for chain in gone_with_nf_tables(self.dropping_chains())? {
            for rule in self.rules(&chain)?.into_iter().filter(|rule| rule.mark == mark) {
                self.commit_to(&chain.table, |batch| {
                    batch.delete_rule(chain.family, &rule.chain, &rule.handle);
                })?;
            }
        }
        Ok(())
    }

    /// What rules in chains of others are marked with: a comment, as `nft` shows it.
    fn mark(&self) -> Vec<u8> {
        super::encode::comment_data(&format!("lapstrake {}", self.table()))
    }

    fn dropping_chains(&mut self) -> Result<Vec<Chain>, Error> {
        let own = self.table().to_owned();
        let mut chains = Vec::new();
        self.dump(
            abi::GETCHAIN,
            0,
            |_| {},
            |family, attributes| {
                chains
                    .extend(dropping_chain(family, attributes).filter(|chain| chain.table != own));
            },
        )?;
        Ok(chains)
    }

    fn admits(&mut self, chain: &Chain, bridge: &str) -> Result<bool, Error> {
        let rules = self.rules(chain)?;
        let accepts =
            |key: u32| rules.iter().any(|rule| accepts_interface(&rule.expressions, key, bridge));
        Ok(accepts(abi::META_IIFNAME) && accepts(abi::META_OIFNAME))
    }

    /// All rules of the chain's table: the accepting one may stand in a chain it jumps to.
    fn rules(&mut self, chain: &Chain) -> Result<Vec<Rule>, Error> {
        let mut rules = Vec::new();
        let question = |m: &mut Writer<'_>| m.text(abi::RULE_TABLE, &chain.table);
        self.dump(abi::GETRULE, chain.family, question, |_, attributes| {
            let mut rule = Rule::default();
            for (kind, value) in attributes_of(attributes) {
                match kind {
                    abi::RULE_CHAIN => rule.chain = text(value),
                    abi::RULE_HANDLE => rule.handle = value.to_vec(),
                    abi::RULE_EXPRESSIONS => rule.expressions = value.to_vec(),
                    abi::RULE_USERDATA => rule.mark = value.to_vec(),
                    _ => {}
                }
            }
            rules.push(rule);
        })?;
        Ok(rules)
    }
}

/// The chain, if it stands at the forward hook and drops what it does not accept.
fn dropping_chain(family: u8, attributes: &[u8]) -> Option<Chain> {
    let ours = [abi::FAMILY_INET, abi::FAMILY_IPV4, abi::FAMILY_IPV6];
    let number = |value: &[u8]| Some(u32::from_be_bytes(value.try_into().ok()?));
    let hook = find(attributes, abi::CHAIN_HOOK)?;
    let forward = number(find(hook, abi::HOOK_NUMBER)?)? == abi::HOOK_FORWARD;
    let drops = number(find(attributes, abi::CHAIN_POLICY)?)? == abi::POLICY_DROP;
    let table = text(find(attributes, abi::CHAIN_TABLE)?);
    let name = text(find(attributes, abi::CHAIN_NAME)?);
    (ours.contains(&family) && forward && drops).then_some(Chain { family, table, name })
}

/// Whether a rule compares this property of the packet with the interface and accepts it.
fn accepts_interface(expressions: &[u8], key: u32, bridge: &str) -> bool {
    let (mut loaded, mut equal, mut accepts) = (false, false, false);
    for (_, expression) in attributes_of(expressions) {
        let name = find(expression, abi::EXPRESSION_NAME).map(text).unwrap_or_default();
        let Some(data) = find(expression, abi::EXPRESSION_DATA) else { continue };
        match name.as_str() {
            "meta" => loaded = find(data, abi::META_KEY) == Some(&key.to_be_bytes()),
            "cmp" => {
                let value = find(data, abi::CMP_DATA).and_then(|data| find(data, abi::DATA_VALUE));
                let is_equal = find(data, abi::CMP_OP) == Some(&abi::CMP_EQ.to_be_bytes());
                equal |= loaded && is_equal && value.map(text).as_deref() == Some(bridge);
            }
            "immediate" => {
                let verdict = find(data, abi::IMMEDIATE_DATA)
                    .and_then(|data| find(data, abi::DATA_VERDICT))
                    .and_then(|verdict| find(verdict, abi::VERDICT_CODE));
                accepts |= verdict == Some(&abi::VERDICT_ACCEPT.to_be_bytes());
            }
            _ => {}
        }
    }
    equal && accepts
}

fn find(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes_of(attributes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// Text up to its final zero bytes.
fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}
