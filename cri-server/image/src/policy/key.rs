//! Public keys that signatures are checked with: ECDSA on P-256 or P-384, and Ed25519, as PEM.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, UnparsedPublicKey,
    VerificationAlgorithm,
};

/// A key and what it is for.
#[derive(Clone)]
pub(crate) struct Key {
    algorithm: &'static dyn VerificationAlgorithm,
    point: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("it is not a public key in PEM form")]
    Form,
    #[error("it is not a key on P-256, P-384 or Ed25519")]
    Kind,
}

/// A `SubjectPublicKeyInfo` of one kind of key is a constant head and the key itself, so telling
/// them apart by their heads is as strict as any parser (RFC 5480, RFC 8410).
const HEADS: [(&[u8], usize, &dyn VerificationAlgorithm); 3] = [
    (
        &[
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
            0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
        ],
        65,
        &ECDSA_P256_SHA256_ASN1,
    ),
    (
        &[
            0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
            0x05, 0x2b, 0x81, 0x04, 0x00, 0x22, 0x03, 0x62, 0x00,
        ],
        97,
        &ECDSA_P384_SHA384_ASN1,
    ),
    (&[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00], 32, &ED25519),
];

const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const END: &str = "-----END PUBLIC KEY-----";

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").finish_non_exhaustive()
    }
}

impl Key {
    pub(crate) fn from_pem(pem: &[u8]) -> Result<Key, KeyError> {
        let text = std::str::from_utf8(pem).map_err(|_| KeyError::Form)?;
        let (_, rest) = text.split_once(BEGIN).ok_or(KeyError::Form)?;
        let (body, _) = rest.split_once(END).ok_or(KeyError::Form)?;
        let body: String = body.split_whitespace().collect();
        let der = STANDARD.decode(body).map_err(|_| KeyError::Form)?;
        let fits = |head: &[u8], length| der.len() == head.len() + length && der.starts_with(head);
        let (head, _, algorithm) =
            HEADS.iter().find(|(head, length, _)| fits(head, *length)).ok_or(KeyError::Kind)?;
        Ok(Key { algorithm: *algorithm, point: der[head.len()..].to_vec() })
    }

    /// The base64 of a PEM text, as policies embed it.
    pub(crate) fn from_base64(text: &str) -> Result<Key, KeyError> {
        Key::from_pem(&STANDARD.decode(text.trim()).map_err(|_| KeyError::Form)?)
    }

    /// The key itself; no two keys have the same.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.point
    }

    /// Whether `signature` over `message` is this key's.
    pub(crate) fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(self.algorithm, &self.point).verify(message, signature).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pem(head: &[u8], length: usize) -> String {
        let der = [head, &vec![4; length]].concat();
        format!("{BEGIN}\n{}\n{END}\n", STANDARD.encode(der))
    }

    #[test]
    fn only_whole_keys_of_known_kinds_are_taken() {
        for (head, length, _) in HEADS {
            assert!(Key::from_pem(pem(head, length).as_bytes()).is_ok());
            assert!(Key::from_base64(&STANDARD.encode(pem(head, length))).is_ok());
            assert_eq!(
                Key::from_pem(pem(head, length - 1).as_bytes()).unwrap_err(),
                KeyError::Kind
            );
        }
        assert_eq!(Key::from_pem(pem(b"0", 290).as_bytes()).unwrap_err(), KeyError::Kind);
        assert_eq!(Key::from_pem(b"ssh-ed25519 AAAA").unwrap_err(), KeyError::Form);
    }
}
