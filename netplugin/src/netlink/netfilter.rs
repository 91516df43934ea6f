//! Writes messages of the kernel's netfilter subsystems. Pure: bytes out, no socket.

const NLA_F_NESTED: u16 = 0x8000;

/// The header of a netfilter message.
pub(crate) struct Header {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) family: u8,
    pub(crate) resource: u16,
}

impl Header {
    pub(crate) fn write(&self, bytes: &mut Vec<u8>, body: impl FnOnce(&mut Writer<'_>)) {
        let start = bytes.len();
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.kind.to_ne_bytes());
        bytes.extend_from_slice(&self.flags.to_ne_bytes());
        bytes.extend_from_slice(&self.sequence.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&[self.family, 0]);
        bytes.extend_from_slice(&self.resource.to_be_bytes());
        body(&mut Writer(bytes));
        let length = (bytes.len() - start) as u32;
        bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }
}

/// Appends attributes.
pub(crate) struct Writer<'a>(&'a mut Vec<u8>);

impl Writer<'_> {
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.0.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// Attributes that are encoded already.
    pub(crate) fn raw(&mut self, attributes: &[u8]) {
        self.0.extend_from_slice(attributes);
    }

    /// A number, in network order as nf_tables has them all.
    pub(crate) fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Text with the zero byte the kernel expects.
    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes);
    }

    pub(crate) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Writer<'_>)) {
        let start = self.0.len();
        self.bytes(kind | NLA_F_NESTED, &[]);
        body(&mut Writer(self.0));
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }
}
