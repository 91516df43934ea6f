//! Makes wire bytes from descriptors: every field of a message set, in canonical order, so that
//! two independent sets of Rust types can be held against each other.

use std::collections::BTreeMap;

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
};

/// One parsed `.proto` package: its messages and enums by full name, nested ones included.
#[derive(Debug, Default)]
pub(crate) struct Contract {
    pub(crate) messages: BTreeMap<String, DescriptorProto>,
    pub(crate) enums: BTreeMap<String, EnumDescriptorProto>,
    pub(crate) services: Vec<ServiceDescriptorProto>,
}

impl Contract {
    /// Reads an encoded `FileDescriptorSet`.
    pub(crate) fn parse(descriptors: &[u8]) -> Self {
        let mut contract = Self::default();
        for file in FileDescriptorSet::decode(descriptors).unwrap().file {
            let package = format!(".{}", file.package());
            contract.enter(&package, &file.message_type, &file.enum_type);
            contract.services.extend(file.service);
        }
        contract
    }

    /// The bytes of `message` with every field set: two elements in a list, one entry in a map
    /// (its order would be nobody's contract), no default value anywhere.
    pub(crate) fn bytes_of(&self, message: &str, seed: &mut u64) -> Vec<u8> {
        let mut fields = self.messages[message].field.clone();
        fields.sort_by_key(FieldDescriptorProto::number);
        let mut bytes = Vec::new();
        for field in fields {
            let repeated = field.label() == Label::Repeated;
            let map = repeated && self.is_map(&field);
            let elements: Vec<_> = (0..if repeated && !map { 2 } else { 1 })
                .map(|_| self.value(&field, seed))
                .collect();
            let tag = u32::try_from(field.number()).unwrap();
            if repeated && wire_type(field.r#type()) != WireType::LengthDelimited {
                encode_key(tag, WireType::LengthDelimited, &mut bytes); // packed, as proto3 wants
                put_slice(&elements.concat(), &mut bytes);
                continue;
            }
            for element in elements {
                encode_key(tag, wire_type(field.r#type()), &mut bytes);
                match wire_type(field.r#type()) {
                    WireType::LengthDelimited => put_slice(&element, &mut bytes),
                    _ => bytes.extend(element),
                }
            }
        }
        bytes
    }

    fn enter(&mut self, scope: &str, messages: &[DescriptorProto], enums: &[EnumDescriptorProto]) {
        for one in enums {
            self.enums.insert(format!("{scope}.{}", one.name()), one.clone());
        }
        for message in messages {
            let name = format!("{scope}.{}", message.name());
            self.enter(&name, &message.nested_type, &message.enum_type);
            self.messages.insert(name, message.clone());
        }
    }

    fn is_map(&self, field: &FieldDescriptorProto) -> bool {
        let entry = self.messages.get(field.type_name()).and_then(|it| it.options.as_ref());
        entry.is_some_and(prost_types::MessageOptions::map_entry)
    }

    /// One value without key and length; `seed` makes each different from the last.
    fn value(&self, field: &FieldDescriptorProto, seed: &mut u64) -> Vec<u8> {
        *seed += 1;
        let n = *seed;
        let mut bytes = Vec::new();
        match field.r#type() {
            Type::String | Type::Bytes => bytes.extend(format!("{}-{n}", field.name()).bytes()),
            Type::Message => bytes = self.bytes_of(field.type_name(), seed),
            Type::Bool => bytes.push(1),
            Type::Enum => {
                let numbers = &self.enums[field.type_name()].value;
                let pick = 1 + usize::try_from(n).unwrap() % (numbers.len() - 1);
                encode_varint(u64::try_from(numbers[pick].number()).unwrap(), &mut bytes);
            }
            // Every other one is negative: ten bytes on the wire, a classic place to differ.
            Type::Int32 | Type::Int64 if n.is_multiple_of(2) => {
                encode_varint(n.wrapping_neg(), &mut bytes)
            }
            Type::Int32 | Type::Int64 | Type::Uint32 | Type::Uint64 => encode_varint(n, &mut bytes),
            Type::Double => bytes.extend((n as f64 / 4.0).to_le_bytes()),
            other => panic!("the contract uses no {other:?} so far: teach {}", file!()),
        }
        bytes
    }
}

fn wire_type(kind: Type) -> WireType {
    match kind {
        Type::String | Type::Bytes | Type::Message => WireType::LengthDelimited,
        Type::Double => WireType::SixtyFourBit,
        _ => WireType::Varint,
    }
}

fn put_slice(slice: &[u8], bytes: &mut Vec<u8>) {
    encode_varint(slice.len() as u64, bytes);
    bytes.extend_from_slice(slice);
}
