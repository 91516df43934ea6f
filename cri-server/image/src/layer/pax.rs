//! The PAX extended attributes a layer may carry: long names, large numbers, xattrs, sparse maps.

/// What one `x` member says about the member after it.
#[derive(Debug, Default)]
pub(crate) struct Attributes {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u64>,
    pub(crate) gid: Option<u64>,
    pub(crate) mtime: Option<(i64, u32)>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) sparse: Option<Sparse>,
}

/// GNU sparse formats 0.0, 0.1 (map here) and 1.0 (map at the head of the data).
#[derive(Debug, Default)]
pub(crate) struct Sparse {
    pub(crate) name: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) map: Option<Vec<(u64, u64)>>,
}

/// Linux allows 64 KiB of attribute list per file; more names than this cannot fit.
const XATTRS_MAX: usize = 256;

impl Attributes {
    /// Parses `"<length> <key>=<value>\n"` records; the length counts the whole record.
    pub(crate) fn parse(mut body: &[u8]) -> Result<Attributes, &'static str> {
        let mut all = Attributes::default();
        let mut old_map: Vec<u64> = Vec::new();
        while !body.is_empty() {
            let space = body.iter().take(20).position(|b| *b == b' ');
            let space = space.ok_or("an extended header has no length")?;
            let length = decimal(&body[..space]).ok_or("an extended header's length is bad")?;
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let record = body
                .get(space + 1..length)
                .and_then(|record| record.strip_suffix(b"\n"))
                .ok_or("an extended header's length is wrong")?;
            body = &body[length..];
            let equals = record.iter().position(|b| *b == b'=');
            let equals = equals.ok_or("an extended header has no value")?;
            all.take(&record[..equals], &record[equals + 1..], &mut old_map)?;
        }
        if !old_map.is_empty() {
            let pairs = old_map.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
            all.sparse.get_or_insert_default().map = Some(pairs);
        }
        Ok(all)
    }

    fn take(
        &mut self,
        key: &[u8],
        value: &[u8],
        old_map: &mut Vec<u64>,
    ) -> Result<(), &'static str> {
        let number = || decimal(value).ok_or("an extended header's number is bad");
        match key {
            b"path" => self.path = nonempty(value),
            b"linkpath" => self.link = nonempty(value),
            b"size" => self.size = Some(number()?),
            b"uid" => self.uid = Some(number()?),
            b"gid" => self.gid = Some(number()?),
            b"mtime" => self.mtime = Some(time(value).ok_or("an extended header's time is bad")?),
            b"GNU.sparse.name" => self.sparse.get_or_insert_default().name = nonempty(value),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse.get_or_insert_default().size = Some(number()?);
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => old_map.push(number()?),
            b"GNU.sparse.map" => {
                let numbers: Option<Vec<u64>> = value.split(|b| *b == b',').map(decimal).collect();
                let numbers = numbers.filter(|n| n.len() % 2 == 0);
                old_map.extend(numbers.ok_or("a sparse file's map is bad")?);
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    if self.xattrs.len() == XATTRS_MAX {
                        return Err("a file has too many extended attributes");
                    }
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

fn nonempty(value: &[u8]) -> Option<Vec<u8>> {
    (!value.is_empty()).then(|| value.to_vec())
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// `-12.345` is 12.345 seconds before 1970; nanoseconds always count forward.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|b| *b == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &text[text.len()..]),
    };
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    let mut digits: Vec<u8> = fraction.iter().copied().take(9).collect();
    digits.resize(9, b'0');
    let nanoseconds = u32::try_from(decimal(&digits)?).ok()?;
    Some(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_count_nanoseconds_forward() {
        for (text, expect) in [
            ("12", Some((12, 0))),
            ("12.5", Some((12, 500_000_000))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-3", Some((-3, 0))),
            ("1.1234567891", Some((1, 123_456_789))),
            ("", None),
            ("x", None),
            ("1.x", None),
        ] {
            assert_eq!(time(text.as_bytes()), expect, "{text}");
        }
    }

    #[test]
    fn records_that_lie_about_their_length_are_refused() {
        for bad in ["5 a=b\n", "99 a=b\n", "x a=b\n", "6 a=b", "3 \n", "99999999999999999999 a=b\n"]
        {
            assert!(Attributes::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        let good = Attributes::parse(b"12 path=abc\n24 SCHILY.xattr.user.a=b\n");
        assert!(good.is_err(), "the second length is one too small");
        let good = Attributes::parse(b"12 path=abc\n25 SCHILY.xattr.user.a=b\n").unwrap();
        assert_eq!(good.path.as_deref(), Some(b"abc".as_slice()));
        assert_eq!(good.xattrs, [(b"user.a".to_vec(), b"b".to_vec())]);
    }
}
