//! Numbers of the kernel's nf_tables interface (uapi: linux/netfilter/nf_tables.h, nfnetlink.h).

pub(super) const SUBSYSTEM: u16 = 10;
pub(super) const BATCH_BEGIN: u16 = 16;
pub(super) const BATCH_END: u16 = 17;

pub(super) const NEWTABLE: u16 = 0;
pub(super) const GETTABLE: u16 = 1;
pub(super) const DELTABLE: u16 = 2;
pub(super) const NEWCHAIN: u16 = 3;
pub(super) const GETCHAIN: u16 = 4;
pub(super) const NEWRULE: u16 = 6;
pub(super) const GETRULE: u16 = 7;
pub(super) const DELRULE: u16 = 8;
pub(super) const NEWSET: u16 = 9;
pub(super) const NEWSETELEM: u16 = 12;
pub(super) const GETSETELEM: u16 = 13;
pub(super) const DELSETELEM: u16 = 14;

pub(super) const FAMILY_INET: u8 = 1;
pub(super) const FAMILY_IPV4: u8 = 2;
pub(super) const FAMILY_IPV6: u8 = 10;

pub(super) const LIST_ELEM: u16 = 1;

pub(super) const TABLE_NAME: u16 = 1;
pub(super) const TABLE_USERDATA: u16 = 6;
/// The kind of user data that `nft` shows as a table's comment.
pub(super) const USERDATA_COMMENT: u8 = 0;

pub(super) const CHAIN_TABLE: u16 = 1;
pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
pub(super) const CHAIN_POLICY: u16 = 5;
pub(super) const CHAIN_TYPE: u16 = 7;
pub(super) const HOOK_NUMBER: u16 = 1;
pub(super) const HOOK_PRIORITY: u16 = 2;

pub(super) const RULE_TABLE: u16 = 1;
pub(super) const RULE_CHAIN: u16 = 2;
pub(super) const RULE_HANDLE: u16 = 3;
pub(super) const RULE_EXPRESSIONS: u16 = 4;
pub(super) const RULE_USERDATA: u16 = 7;

pub(super) const SET_TABLE: u16 = 1;
pub(super) const SET_NAME: u16 = 2;
pub(super) const SET_FLAGS: u16 = 3;
pub(super) const SET_KEY_TYPE: u16 = 4;
pub(super) const SET_KEY_LEN: u16 = 5;
pub(super) const SET_DATA_TYPE: u16 = 6;
pub(super) const SET_DATA_LEN: u16 = 7;
pub(super) const SET_ID: u16 = 10;
pub(super) const SET_F_INTERVAL: u32 = 4;
pub(super) const SET_F_MAP: u32 = 8;

pub(super) const ELEMENTS_TABLE: u16 = 1;
pub(super) const ELEMENTS_SET: u16 = 2;
pub(super) const ELEMENTS: u16 = 3;
pub(super) const ELEMENT_KEY: u16 = 1;
pub(super) const ELEMENT_DATA: u16 = 2;
pub(super) const ELEMENT_FLAGS: u16 = 3;
pub(super) const ELEMENT_F_INTERVAL_END: u32 = 1;

pub(super) const DATA_VALUE: u16 = 1;
pub(super) const DATA_VERDICT: u16 = 2;
pub(super) const VERDICT_CODE: u16 = 1;
pub(super) const VERDICT_CHAIN: u16 = 2;
pub(super) const VERDICT_ACCEPT: i32 = 1;
pub(super) const VERDICT_JUMP: i32 = -3;

pub(super) const EXPRESSION_NAME: u16 = 1;
pub(super) const EXPRESSION_DATA: u16 = 2;

pub(super) const REGISTER_VERDICT: u32 = 0;
/// The first of sixteen registers of four bytes.
pub(super) const REGISTER: u32 = 8;

pub(super) const META_DREG: u16 = 1;
pub(super) const META_KEY: u16 = 2;
pub(super) const META_IIFNAME: u32 = 6;
pub(super) const META_OIFNAME: u32 = 7;
pub(super) const META_NFPROTO: u32 = 15;
pub(super) const META_L4PROTO: u32 = 16;

pub(super) const CMP_SREG: u16 = 1;
pub(super) const CMP_OP: u16 = 2;
pub(super) const CMP_DATA: u16 = 3;
pub(super) const CMP_EQ: u32 = 0;
pub(super) const CMP_NEQ: u32 = 1;

pub(super) const PAYLOAD_DREG: u16 = 1;
pub(super) const PAYLOAD_BASE: u16 = 2;
pub(super) const PAYLOAD_OFFSET: u16 = 3;
pub(super) const PAYLOAD_LEN: u16 = 4;
pub(super) const PAYLOAD_NETWORK: u32 = 1;
pub(super) const PAYLOAD_TRANSPORT: u32 = 2;

pub(super) const BITWISE_SREG: u16 = 1;
pub(super) const BITWISE_DREG: u16 = 2;
pub(super) const BITWISE_LEN: u16 = 3;
pub(super) const BITWISE_MASK: u16 = 4;
pub(super) const BITWISE_XOR: u16 = 5;

pub(super) const LOOKUP_SET: u16 = 1;
pub(super) const LOOKUP_SREG: u16 = 2;
pub(super) const LOOKUP_DREG: u16 = 3;
pub(super) const LOOKUP_FLAGS: u16 = 5;
pub(super) const LOOKUP_F_INVERT: u32 = 1;

pub(super) const IMMEDIATE_DREG: u16 = 1;
pub(super) const IMMEDIATE_DATA: u16 = 2;

pub(super) const FIB_DREG: u16 = 1;
pub(super) const FIB_RESULT: u16 = 2;
pub(super) const FIB_FLAGS: u16 = 3;
pub(super) const FIB_RESULT_ADDRTYPE: u32 = 3;
pub(super) const FIB_F_DADDR: u32 = 2;
/// The address type of the host's own addresses (RTN_LOCAL).
pub(super) const ADDRTYPE_LOCAL: u32 = 2;

pub(super) const CT_DREG: u16 = 1;
pub(super) const CT_KEY: u16 = 2;
pub(super) const CT_STATUS: u32 = 2;
/// The connection's destination was rewritten (IPS_DST_NAT).
pub(super) const CT_STATUS_DNAT: u32 = 1 << 5;

pub(super) const NAT_TYPE: u16 = 1;
pub(super) const NAT_FAMILY: u16 = 2;
pub(super) const NAT_REG_ADDR_MIN: u16 = 3;
pub(super) const NAT_REG_PROTO_MIN: u16 = 5;
pub(super) const NAT_DNAT: u32 = 1;

pub(super) const HOOK_PREROUTING: u32 = 0;
pub(super) const HOOK_FORWARD: u32 = 2;
pub(super) const HOOK_OUTPUT: u32 = 3;
pub(super) const HOOK_POSTROUTING: u32 = 4;
pub(super) const POLICY_DROP: u32 = 0;
pub(super) const PRIORITY_DSTNAT: i32 = -100;
pub(super) const PRIORITY_SRCNAT: i32 = 100;

/// Data types as the `nft` program numbers them; the kernel only stores them, for its listings.
pub(super) const TYPE_IPV4_ADDR: u32 = 7;
pub(super) const TYPE_IPV6_ADDR: u32 = 8;
pub(super) const TYPE_INET_PROTO: u32 = 12;
pub(super) const TYPE_INET_SERVICE: u32 = 13;
/// Bits of each part in the number of a concatenated type.
pub(super) const TYPE_BITS: u32 = 6;
