//! Writes nf_tables messages. Pure: bytes out, no socket.

use super::abi;
use crate::netlink::netfilter::{Header, Writer};

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;

/// Elements in one message: an attribute ends at 64 KiB and an element has at most about 100 bytes.
const ELEMENTS_PER_MESSAGE: usize = 400;

/// A key of a set or map with what it maps to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) key: Vec<u8>,
    pub(crate) data: Option<Vec<u8>>,
    /// The end of an interval: the first key behind it.
    pub(crate) interval_end: bool,
}

/// The shape of a set or map.
pub(super) struct Set<'a> {
    pub(super) name: &'a str,
    pub(super) key_type: u32,
    pub(super) key_len: u32,
    /// Type and length of the data, for a map.
    pub(super) data: Option<(u32, u32)>,
    pub(super) interval: bool,
}

/// A transaction: the kernel takes all of it or nothing.
pub(crate) struct Batch {
    bytes: Vec<u8>,
    table: String,
    family: u8,
    first: u32,
    /// What each message does, in order, for error texts.
    steps: Vec<(&'static str, String)>,
}

impl Batch {
    /// Starts a transaction on a table; its messages are numbered from `first`.
    pub(crate) fn new(table: &str, first: u32) -> Batch {
        let (bytes, steps) = (Vec::new(), Vec::new());
        let table = table.to_owned();
        let mut batch = Batch { bytes, table, family: abi::FAMILY_INET, first, steps };
        batch.begin_or_end(abi::BATCH_BEGIN);
        batch
    }

    /// Ends it: the datagram, the number of answers to expect, and what each message does.
    pub(crate) fn finish(mut self) -> (Vec<u8>, Vec<(&'static str, String)>) {
        self.begin_or_end(abi::BATCH_END);
        (self.bytes, self.steps)
    }

    pub(super) fn add_table(&mut self, comment: &str) {
        let table = self.table.clone();
        self.message(abi::NEWTABLE, NLM_F_CREATE, ("create table", &table), |m| {
            m.text(abi::TABLE_NAME, &table);
            m.bytes(abi::TABLE_USERDATA, &comment_data(comment));
        });
    }

    pub(super) fn delete_table(&mut self) {
        let table = self.table.clone();
        self.message(abi::DELTABLE, 0, ("delete table", &table), |m| {
            m.text(abi::TABLE_NAME, &table);
        });
    }

    pub(super) fn add_set(&mut self, set: &Set<'_>) {
        let table = self.table.clone();
        // Names a set within its transaction; the kernel wants one, rules here use the name.
        let id = self.steps.len() as u32;
        let flags = if set.interval { abi::SET_F_INTERVAL } else { 0 }
            | if set.data.is_some() { abi::SET_F_MAP } else { 0 };
        self.message(abi::NEWSET, NLM_F_CREATE, ("create set", set.name), |m| {
            m.text(abi::SET_TABLE, &table);
            m.text(abi::SET_NAME, set.name);
            m.number(abi::SET_FLAGS, flags);
            m.number(abi::SET_KEY_TYPE, set.key_type);
            m.number(abi::SET_KEY_LEN, set.key_len);
            if let Some((data_type, data_len)) = set.data {
                m.number(abi::SET_DATA_TYPE, data_type);
                m.number(abi::SET_DATA_LEN, data_len);
            }
            m.number(abi::SET_ID, id);
        });
    }

    /// Adds a chain; `hook` is (type, hook number, priority) of a base chain.
    pub(super) fn add_chain(&mut self, name: &str, hook: Option<(&str, u32, i32)>) {
        let table = self.table.clone();
        self.message(abi::NEWCHAIN, NLM_F_CREATE, ("create chain", name), |m| {
            m.text(abi::CHAIN_TABLE, &table);
            m.text(abi::CHAIN_NAME, name);
            if let Some((kind, number, priority)) = hook {
                m.nest(abi::CHAIN_HOOK, |m| {
                    m.number(abi::HOOK_NUMBER, number);
                    m.number(abi::HOOK_PRIORITY, priority.cast_unsigned());
                });
                m.text(abi::CHAIN_TYPE, kind);
            }
        });
    }

    pub(super) fn add_rule(&mut self, chain: &str, expressions: &[Expression<'_>]) {
        let table = self.table.clone();
        let flags = NLM_F_CREATE | NLM_F_APPEND;
        self.message(abi::NEWRULE, flags, ("create rule in chain", chain), |m| {
            m.text(abi::RULE_TABLE, &table);
            m.text(abi::RULE_CHAIN, chain);
            write_expressions(m, expressions);
        });
    }

    /// Puts a marked rule at the head of a chain of any family.
    pub(super) fn insert_rule(
        &mut self,
        family: u8,
        chain: &str,
        expressions: &[Expression<'_>],
        mark: &[u8],
    ) {
        let table = self.table.clone();
        self.family = family;
        self.message(abi::NEWRULE, NLM_F_CREATE, ("create rule in chain", chain), |m| {
            m.text(abi::RULE_TABLE, &table);
            m.text(abi::RULE_CHAIN, chain);
            write_expressions(m, expressions);
            m.bytes(abi::RULE_USERDATA, mark);
        });
    }

    pub(super) fn delete_rule(&mut self, family: u8, chain: &str, handle: &[u8]) {
        let table = self.table.clone();
        self.family = family;
        self.message(abi::DELRULE, 0, ("delete rule of chain", chain), |m| {
            m.text(abi::RULE_TABLE, &table);
            m.text(abi::RULE_CHAIN, chain);
            m.bytes(abi::RULE_HANDLE, handle);
        });
    }

    pub(super) fn add_elements(&mut self, set: &str, elements: &[Element]) {
        self.elements(abi::NEWSETELEM, NLM_F_CREATE, ("add element to", set), elements);
    }

    pub(super) fn delete_elements(&mut self, set: &str, elements: &[Element]) {
        self.elements(abi::DELSETELEM, 0, ("delete element of", set), elements);
    }

    fn elements(
        &mut self,
        kind: u16,
        flags: u16,
        (stage, set): (&'static str, &str),
        elements: &[Element],
    ) {
        let table = self.table.clone();
        for some in elements.chunks(ELEMENTS_PER_MESSAGE) {
            self.message(kind, flags, (stage, set), |m| {
                m.text(abi::ELEMENTS_TABLE, &table);
                m.text(abi::ELEMENTS_SET, set);
                m.nest(abi::ELEMENTS, |m| some.iter().for_each(|element| element.write(m)));
            });
        }
    }

    fn message(
        &mut self,
        kind: u16,
        flags: u16,
        (stage, object): (&'static str, &str),
        body: impl FnOnce(&mut Writer<'_>),
    ) {
        let sequence = self.first + self.steps.len() as u32;
        self.steps.push((stage, format!("{} {object}", self.table).trim_end().to_owned()));
        let header = Header {
            kind: (abi::SUBSYSTEM << 8) | kind,
            flags: NLM_F_REQUEST | NLM_F_ACK | flags,
            sequence,
            family: self.family,
            resource: 0,
        };
        header.write(&mut self.bytes, body);
    }

    fn begin_or_end(&mut self, kind: u16) {
        // The number is outside those of the messages: an answer to it is an error of the whole.
        let header = Header {
            kind,
            flags: NLM_F_REQUEST,
            sequence: self.first.wrapping_sub(1),
            family: 0,
            resource: abi::SUBSYSTEM,
        };
        header.write(&mut self.bytes, |_| {});
    }
}

fn write_expressions(m: &mut Writer<'_>, expressions: &[Expression<'_>]) {
    m.nest(abi::RULE_EXPRESSIONS, |m| {
        for expression in expressions {
            m.nest(abi::LIST_ELEM, |m| {
                m.text(abi::EXPRESSION_NAME, expression.name());
                m.nest(abi::EXPRESSION_DATA, |m| expression.write(m));
            });
        }
    });
}

/// The name of an interface as packets carry it: 16 bytes, the rest zero.
pub(super) fn interface_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    // Names have at most 15 characters: the configuration was checked for it.
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    bytes
}

/// Asks for one element of a set.
pub(super) fn get_element(m: &mut Writer<'_>, table: &str, set: &str, element: &Element) {
    m.text(abi::ELEMENTS_TABLE, table);
    m.text(abi::ELEMENTS_SET, set);
    m.nest(abi::ELEMENTS, |m| Element::key(element.key.clone()).write(m));
}

/// A comment as `nft` keeps it with a table: kind, length, text with a final zero byte.
pub(super) fn comment_data(comment: &str) -> Vec<u8> {
    let text = &comment.as_bytes()[..comment.len().min(usize::from(u8::MAX) - 1)];
    let mut data = vec![abi::USERDATA_COMMENT, text.len() as u8 + 1];
    data.extend_from_slice(text);
    data.push(0);
    data
}

impl Element {
    pub(super) fn key(key: Vec<u8>) -> Element {
        Element { key, data: None, interval_end: false }
    }

    fn write(&self, m: &mut Writer<'_>) {
        m.nest(abi::LIST_ELEM, |m| {
            m.nest(abi::ELEMENT_KEY, |m| m.bytes(abi::DATA_VALUE, &self.key));
            if let Some(data) = &self.data {
                m.nest(abi::ELEMENT_DATA, |m| m.bytes(abi::DATA_VALUE, data));
            }
            if self.interval_end {
                m.number(abi::ELEMENT_FLAGS, abi::ELEMENT_F_INTERVAL_END);
            }
        });
    }
}

/// One step of a rule. Registers are counted in units of four bytes from 0.
pub(super) enum Expression<'a> {
    /// Loads a property of the packet.
    Meta { key: u32, to: u32 },
    /// Loads bytes of a header.
    Payload { base: u32, offset: u32, len: u32, to: u32 },
    /// Goes on only if the register equals the value (or does not).
    Compare { register: u32, equal: bool, value: &'a [u8] },
    /// Masks a register of four bytes.
    Mask { register: u32, mask: [u8; 4] },
    /// Goes on only if the register is in the set (or is not).
    Lookup { set: &'a str, register: u32, inverted: bool },
    /// Goes on only if the key is in the map, with its data in the first registers.
    Map { map: &'a str, register: u32 },
    /// Loads what kind of address the destination is to this host.
    DestinationType { to: u32 },
    /// Loads the status bits of the connection.
    ConnectionStatus { to: u32 },
    /// Rewrites the destination to the address and port in the registers.
    Dnat { family: u8, address: u32, port: u32 },
    /// Rewrites the source to the address of the link the packet leaves by.
    Masquerade,
    /// Goes on in another chain, then comes back.
    Jump { chain: &'a str },
    /// Counts packets and bytes.
    Counter,
    /// Ends the base chain; those of others go on.
    Accept,
}

impl Expression<'_> {
    fn name(&self) -> &'static str {
        match self {
            Expression::Meta { .. } => "meta",
            Expression::Payload { .. } => "payload",
            Expression::Compare { .. } => "cmp",
            Expression::Mask { .. } => "bitwise",
            Expression::Lookup { .. } | Expression::Map { .. } => "lookup",
            Expression::DestinationType { .. } => "fib",
            Expression::ConnectionStatus { .. } => "ct",
            Expression::Dnat { .. } => "nat",
            Expression::Masquerade => "masq",
            Expression::Jump { .. } | Expression::Accept => "immediate",
            Expression::Counter => "counter",
        }
    }

    fn write(&self, m: &mut Writer<'_>) {
        match *self {
            Expression::Meta { key, to } => {
                m.number(abi::META_KEY, key);
                m.number(abi::META_DREG, abi::REGISTER + to);
            }
            Expression::Payload { base, offset, len, to } => {
                m.number(abi::PAYLOAD_DREG, abi::REGISTER + to);
                m.number(abi::PAYLOAD_BASE, base);
                m.number(abi::PAYLOAD_OFFSET, offset);
                m.number(abi::PAYLOAD_LEN, len);
            }
            Expression::Compare { register, equal, value } => {
                m.number(abi::CMP_SREG, abi::REGISTER + register);
                m.number(abi::CMP_OP, if equal { abi::CMP_EQ } else { abi::CMP_NEQ });
                m.nest(abi::CMP_DATA, |m| m.bytes(abi::DATA_VALUE, value));
            }
            Expression::Mask { register, mask } => {
                m.number(abi::BITWISE_SREG, abi::REGISTER + register);
                m.number(abi::BITWISE_DREG, abi::REGISTER + register);
                m.number(abi::BITWISE_LEN, 4);
                m.nest(abi::BITWISE_MASK, |m| m.bytes(abi::DATA_VALUE, &mask));
                m.nest(abi::BITWISE_XOR, |m| m.bytes(abi::DATA_VALUE, &[0; 4]));
            }
            Expression::Lookup { set, register, inverted } => {
                m.text(abi::LOOKUP_SET, set);
                m.number(abi::LOOKUP_SREG, abi::REGISTER + register);
                if inverted {
                    m.number(abi::LOOKUP_FLAGS, abi::LOOKUP_F_INVERT);
                }
            }
            Expression::Map { map, register } => {
                m.text(abi::LOOKUP_SET, map);
                m.number(abi::LOOKUP_SREG, abi::REGISTER + register);
                m.number(abi::LOOKUP_DREG, abi::REGISTER);
            }
            Expression::DestinationType { to } => {
                m.number(abi::FIB_RESULT, abi::FIB_RESULT_ADDRTYPE);
                m.number(abi::FIB_DREG, abi::REGISTER + to);
                m.number(abi::FIB_FLAGS, abi::FIB_F_DADDR);
            }
            Expression::ConnectionStatus { to } => {
                m.number(abi::CT_KEY, abi::CT_STATUS);
                m.number(abi::CT_DREG, abi::REGISTER + to);
            }
            Expression::Dnat { family, address, port } => {
                m.number(abi::NAT_TYPE, abi::NAT_DNAT);
                m.number(abi::NAT_FAMILY, family.into());
                m.number(abi::NAT_REG_ADDR_MIN, abi::REGISTER + address);
                m.number(abi::NAT_REG_PROTO_MIN, abi::REGISTER + port);
            }
            Expression::Masquerade | Expression::Counter => {}
            Expression::Accept => {
                m.number(abi::IMMEDIATE_DREG, abi::REGISTER_VERDICT);
                m.nest(abi::IMMEDIATE_DATA, |m| {
                    m.nest(abi::DATA_VERDICT, |m| {
                        m.number(abi::VERDICT_CODE, abi::VERDICT_ACCEPT.cast_unsigned());
                    });
                });
            }
            Expression::Jump { chain } => {
                m.number(abi::IMMEDIATE_DREG, abi::REGISTER_VERDICT);
                m.nest(abi::IMMEDIATE_DATA, |m| {
                    m.nest(abi::DATA_VERDICT, |m| {
                        m.number(abi::VERDICT_CODE, abi::VERDICT_JUMP.cast_unsigned());
                        m.text(abi::VERDICT_CHAIN, chain);
                    });
                });
            }
        }
    }
}
