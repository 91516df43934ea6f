//! Names of devices: `vendor/class=device`. Pure.

/// The kind (`vendor/class`) and the device, when the text is a name.
pub(crate) fn parse(text: &str) -> Option<(&str, &str)> {
    let (kind, device) = text.split_once('=')?;
    (is_kind(kind) && is_device(device)).then_some((kind, device))
}

/// `vendor.com/class`.
pub(super) fn is_kind(text: &str) -> bool {
    let word = |text: &str, more: &str| {
        text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.ends_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    text.split_once('/').is_some_and(|(vendor, class)| word(vendor, "_-.") && word(class, "_-"))
}

pub(super) fn is_device(text: &str) -> bool {
    let ends = |c: char| c.is_ascii_alphanumeric();
    text.starts_with(ends)
        && text.ends_with(ends)
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.:".contains(c))
}
