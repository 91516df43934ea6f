//! Reads a tar stream from a stranger: every field is checked, every extension is bounded, and
//! names are handed on as bytes without touching any file.

use std::io::{self, BufRead};

use super::pax;

/// One member of the archive, with PAX and GNU extensions applied.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) name: Vec<u8>,
    /// Target of a symbolic or hard link.
    pub(crate) link: Vec<u8>,
    /// Size of the file once written, holes included.
    pub(crate) size: u64,
    /// Permission bits with set-id and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub(crate) mtime: (i64, u32),
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the stored bytes belong, as (offset, length); absent for an ordinary file.
    pub(crate) sparse: Option<Vec<(u64, u64)>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    #[default]
    File,
    HardLink,
    Symlink,
    Char,
    Block,
    Directory,
    Fifo,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error("malformed archive at byte {at}: {reason}")]
    Malformed { at: u64, reason: &'static str },
}

/// The members of a tar stream, one after the other.
pub(crate) struct Archive<R> {
    input: R,
    /// Bytes consumed so far, for error messages.
    at: u64,
    /// Stored bytes of the current member that were not read yet.
    unread: u64,
    /// Zero bytes after the current member's data.
    padding: u64,
}

const BLOCK: u64 = 512;
/// Go's reader (and so every registry client in use) refuses longer extension members too.
const EXTENSION_MAX: u64 = 1 << 20;
/// Extension members before one member: writers use four at the most, and each may be
/// [`EXTENSION_MAX`] bytes of work that counts as no entry.
const EXTENSIONS_MAX: usize = 32;
/// A sparse map is 16 bytes per piece in memory; a file of more pieces is not a real one.
const SPARSE_PIECES_MAX: usize = 1 << 18;
/// The kernel's PATH_MAX.
const NAME_MAX: usize = 4096;

/// Of a header's bytes, with blanks in the place of the sum itself.
fn sum(block: &[u8; 512], value: impl Fn(u8) -> i32) -> i32 {
    let of = |part: &[u8]| part.iter().map(|b| value(*b)).sum::<i32>();
    of(&block[..148]) + of(&block[156..]) + 8 * i32::from(b' ')
}

impl<R: BufRead> Archive<R> {
    pub(crate) fn new(input: R) -> Archive<R> {
        Archive { input, at: 0, unread: 0, padding: 0 }
    }

    /// The next member; data of the one before is skipped. `None` at the end marker or at the end
    /// of the stream.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut attributes = pax::Attributes::default();
        let (mut long_name, mut long_link) = (None, None);
        for _ in 0..=EXTENSIONS_MAX {
            let rest = std::mem::take(&mut self.unread) + std::mem::take(&mut self.padding);
            self.skip(rest)?;
            let Some(block) = self.header()? else { return Ok(None) };
            let size = self.number(&block[124..136])?;
            match block[156] {
                b'x' => {
                    let body = self.extension(size)?;
                    attributes =
                        pax::Attributes::parse(&body).map_err(|reason| self.malformed(reason))?;
                }
                // Global attributes are comments in practice; peers do not apply them either.
                b'g' => drop(self.extension(size)?),
                b'L' => long_name = Some(until_nul(&self.extension(size)?).to_vec()),
                b'K' => long_link = Some(until_nul(&self.extension(size)?).to_vec()),
                _ => {
                    let mut entry = self.member(&block, size, attributes)?;
                    if let Some(name) = long_name {
                        entry.name = name;
                    }
                    if let Some(link) = long_link {
                        entry.link = link;
                    }
                    if entry.name.len() > NAME_MAX || entry.link.len() > NAME_MAX {
                        return Err(self.malformed("a name is longer than 4096 bytes"));
                    }
                    if entry.name.contains(&0) || entry.link.contains(&0) {
                        return Err(self.malformed("a name holds a NUL byte"));
                    }
                    return Ok(Some(entry));
                }
            }
        }
        Err(self.malformed("a member has too many extension headers"))
    }

    /// The stored bytes of the current member that come next; empty when there are none left.
    pub(crate) fn data(&mut self, most: u64) -> Result<&[u8], ArchiveError> {
        let unread = self.unread.min(most);
        if unread == 0 {
            return Ok(&[]);
        }
        let at = self.at;
        let bytes = self.input.fill_buf()?;
        if bytes.is_empty() {
            return Err(ArchiveError::Malformed { at, reason: "it ends within a file" });
        }
        let length = bytes.len().min(usize::try_from(unread).unwrap_or(usize::MAX));
        Ok(&bytes[..length])
    }

    /// Marks `length` bytes that [`Archive::data`] returned as read.
    pub(crate) fn consume(&mut self, length: usize) {
        self.input.consume(length);
        self.at += length as u64;
        self.unread -= length as u64;
    }

    fn malformed(&self, reason: &'static str) -> ArchiveError {
        ArchiveError::Malformed { at: self.at, reason }
    }

    fn skip(&mut self, mut length: u64) -> Result<(), ArchiveError> {
        while length > 0 {
            let bytes = self.input.fill_buf()?;
            if bytes.is_empty() {
                return Err(self.malformed("it ends within a file"));
            }
            let step = bytes.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            self.input.consume(step);
            self.at += step as u64;
            length -= step as u64;
        }
        Ok(())
    }

    /// One header block with a right checksum; `None` at the end.
    fn header(&mut self) -> Result<Option<[u8; 512]>, ArchiveError> {
        if self.input.fill_buf()?.is_empty() {
            return Ok(None); // some writers leave the end marker out
        }
        let mut block = [0u8; 512];
        self.fill(&mut block)?;
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let told = self.number(&block[148..156])?;
        let told = i32::try_from(told).unwrap_or(-1);
        // Some old writers summed signed bytes.
        if told != sum(&block, i32::from) && told != sum(&block, |b| b.cast_signed().into()) {
            return Err(self.malformed("a header's checksum is wrong"));
        }
        Ok(Some(block))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), ArchiveError> {
        match self.input.read_exact(buffer) {
            Ok(()) => {
                self.at += buffer.len() as u64;
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.malformed("it ends within a header"))
            }
            Err(e) => Err(e.into()),
        }
    }

    /// The body of an extension member and its padding.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > EXTENSION_MAX {
            return Err(self.malformed("an extension header is longer than 1 MiB"));
        }
        let mut body = vec![0; usize::try_from(size).unwrap_or(0)];
        self.fill(&mut body)?;
        self.skip(padding_of(size))?;
        Ok(body)
    }

    fn member(
        &mut self,
        block: &[u8; 512],
        size: u64,
        attributes: pax::Attributes,
    ) -> Result<Entry, ArchiveError> {
        let magic = &block[257..265];
        let posix = magic.starts_with(b"ustar\0");
        let mut name = until_nul(&block[0..100]).to_vec();
        let prefix = until_nul(&block[345..500]);
        if posix && !prefix.is_empty() {
            name = [prefix, b"/", &name].concat();
        }
        let kind = match block[156] {
            0 if name.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            _ => return Err(self.malformed("a member has an unknown type")),
        };
        let mut entry = Entry {
            kind,
            name,
            link: until_nul(&block[157..257]).to_vec(),
            mode: u32::try_from(self.number(&block[100..108])? & 0o7777).unwrap_or(0),
            uid: self.id(self.number(&block[108..116])?)?,
            gid: self.id(self.number(&block[116..124])?)?,
            mtime: (self.time(&block[136..148])?, 0),
            ..Entry::default()
        };
        if matches!(kind, Kind::Char | Kind::Block) {
            let part = |bytes| -> Result<u32, ArchiveError> {
                u32::try_from(self.number(bytes)?)
                    .map_err(|_| self.malformed("a device number is too large"))
            };
            entry.device = (part(&block[329..337])?, part(&block[337..345])?);
        }
        // Only files carry data; a size on anything else is ignored, as peers do.
        let stored = if kind == Kind::File { attributes.size.unwrap_or(size) } else { 0 };
        if stored > u64::MAX / 4 {
            return Err(self.malformed("a file's size is absurd"));
        }
        self.unread = stored;
        self.padding = padding_of(stored);
        entry.size = stored;
        if kind == Kind::File && block[156] == b'S' {
            self.old_sparse(block, &mut entry)?;
        }
        self.apply(attributes, &mut entry)?;
        if let Some(pieces) = &entry.sparse {
            self.check_pieces(pieces, entry.size)?;
        }
        Ok(entry)
    }

    fn apply(
        &mut self,
        attributes: pax::Attributes,
        entry: &mut Entry,
    ) -> Result<(), ArchiveError> {
        let id = |value: Option<u64>, old: u32| match value {
            Some(value) => self.id(value),
            None => Ok(old),
        };
        entry.uid = id(attributes.uid, entry.uid)?;
        entry.gid = id(attributes.gid, entry.gid)?;
        entry.mtime = attributes.mtime.unwrap_or(entry.mtime);
        entry.xattrs = attributes.xattrs;
        if let Some(path) = attributes.path {
            entry.name = path;
        }
        if let Some(link) = attributes.link {
            entry.link = link;
        }
        if entry.kind != Kind::File {
            return Ok(());
        }
        match attributes.sparse {
            None => {}
            Some(pax::Sparse { name, size, map }) => {
                if let Some(name) = name {
                    entry.name = name;
                }
                let pieces = match map {
                    Some(map) => map,
                    None => self.map_in_data()?,
                };
                entry.size = size.ok_or_else(|| self.malformed("a sparse file has no size"))?;
                entry.sparse = Some(pieces);
            }
        }
        Ok(())
    }

    /// The GNU form before PAX: the map is in the header and in blocks that follow it.
    fn old_sparse(&mut self, block: &[u8; 512], entry: &mut Entry) -> Result<(), ArchiveError> {
        let mut pieces = Vec::new();
        entry.size = self.number(&block[483..495])?;
        let mut more = self.old_pieces(&block[386..482], &mut pieces)? && block[482] != 0;
        while more {
            let mut extension = [0u8; 512];
            self.fill(&mut extension)?;
            more = self.old_pieces(&extension[..504], &mut pieces)? && extension[504] != 0;
        }
        entry.sparse = Some(pieces);
        Ok(())
    }

    /// Reads (offset, length) fields; false when an unused field ended the list.
    fn old_pieces(
        &self,
        fields: &[u8],
        pieces: &mut Vec<(u64, u64)>,
    ) -> Result<bool, ArchiveError> {
        for field in fields.chunks_exact(24) {
            if field[0] == 0 {
                return Ok(false);
            }
            if pieces.len() == SPARSE_PIECES_MAX {
                return Err(self.malformed("a sparse file has too many pieces"));
            }
            pieces.push((self.number(&field[..12])?, self.number(&field[12..])?));
        }
        Ok(true)
    }

    /// PAX sparse 1.0: decimal lines at the head of the data, padded to a block.
    fn map_in_data(&mut self) -> Result<Vec<(u64, u64)>, ArchiveError> {
        let mut read = 0;
        let count = self.map_number(&mut read)?;
        if count > SPARSE_PIECES_MAX as u64 {
            return Err(self.malformed("a sparse file has too many pieces"));
        }
        let mut pieces = Vec::new();
        for _ in 0..count {
            pieces.push((self.map_number(&mut read)?, self.map_number(&mut read)?));
        }
        let rest = padding_of(read).min(self.unread);
        self.skip(rest)?;
        self.unread -= rest;
        Ok(pieces)
    }

    fn map_number(&mut self, read: &mut u64) -> Result<u64, ArchiveError> {
        let mut value: u64 = 0;
        loop {
            let byte = self.data(1)?.first().copied();
            let Some(byte) = byte else {
                return Err(self.malformed("a sparse file's map is cut short"));
            };
            self.consume(1);
            *read += 1;
            match byte {
                b'\n' => return Ok(value),
                b'0'..=b'9' => {
                    value = value
                        .checked_mul(10)
                        .and_then(|v| v.checked_add(u64::from(byte - b'0')))
                        .ok_or_else(|| self.malformed("a sparse file's map overflows"))?;
                }
                _ => return Err(self.malformed("a sparse file's map is not decimal")),
            }
        }
    }

    /// Pieces must be in order, apart, within the file, and exactly as long as what is stored.
    fn check_pieces(&self, pieces: &[(u64, u64)], size: u64) -> Result<(), ArchiveError> {
        let (mut end, mut stored) = (0u64, 0u64);
        for (offset, length) in pieces {
            let piece_end = offset.checked_add(*length).filter(|e| *offset >= end && *e <= size);
            end = piece_end.ok_or_else(|| self.malformed("a sparse file's map is inconsistent"))?;
            stored += length;
        }
        if stored != self.unread {
            return Err(self.malformed("a sparse file's map does not match its data"));
        }
        Ok(())
    }

    fn id(&self, value: u64) -> Result<u32, ArchiveError> {
        u32::try_from(value)
            .ok()
            .filter(|id| *id != u32::MAX) // chown takes it for "leave as it is"
            .ok_or_else(|| self.malformed("an owner's id does not fit 32 bits"))
    }

    /// An unsigned header number: octal text, or GNU base 256 when the first bit is set.
    fn number(&self, field: &[u8]) -> Result<u64, ArchiveError> {
        if field[0] & 0x80 != 0 {
            if field[0] & 0x40 != 0 {
                return Err(self.malformed("a number is negative"));
            }
            return field[1..].iter().try_fold(u64::from(field[0] & 0x3f), |value, byte| {
                value
                    .checked_mul(256)
                    .map(|v| v | u64::from(*byte))
                    .ok_or_else(|| self.malformed("a number is too large"))
            });
        }
        let digits = field.trim_ascii_start();
        let end = digits.iter().position(|b| !b.is_ascii_digit()).unwrap_or(digits.len());
        if !digits[end..].iter().all(|b| matches!(b, 0 | b' '))
            && digits.get(end).is_some_and(|b| !matches!(b, 0 | b' '))
        {
            return Err(self.malformed("a number is not octal"));
        }
        digits[..end].iter().try_fold(0u64, |value, digit| {
            if *digit > b'7' {
                return Err(self.malformed("a number is not octal"));
            }
            value
                .checked_mul(8)
                .map(|v| v | u64::from(digit - b'0'))
                .ok_or_else(|| self.malformed("a number is too large"))
        })
    }

    /// A time may be before 1970, which only base 256 can say.
    fn time(&self, field: &[u8]) -> Result<i64, ArchiveError> {
        if field[0] == 0xff {
            let mut bytes = [0xff; 8];
            bytes.copy_from_slice(&field[4..12]);
            return Ok(i64::from_be_bytes(bytes));
        }
        Ok(i64::try_from(self.number(field)?).unwrap_or(0))
    }
}

fn padding_of(size: u64) -> u64 {
    size.next_multiple_of(BLOCK) - size
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}
