//! What a seccomp program will say about a system call, before it is loaded.

/// Whether it lets this machine's own calls of that number go, whatever their arguments.
pub(crate) fn lets_go(program: &[u8], number: libc::c_long) -> bool {
    const ALLOW: u32 = 0x7fff_0000; // SECCOMP_RET_ALLOW
    const AUDIT: u32 = if cfg!(target_arch = "aarch64") { 0xc000_00b7 } else { 0xc000_003e };
    let word = |offset| match offset {
        0 => Some(number as u32),
        4 => Some(AUDIT),
        _ => None,
    };
    answer(program, word) == Some(ALLOW)
}

/// The program's answer. None when it depends on more than `word` tells of `struct seccomp_data` by offset, and where the
/// kernel would not load it.
fn answer(program: &[u8], word: impl Fn(u32) -> Option<u32>) -> Option<u32> {
    // Operations of linux/bpf_common.h.
    const LOAD: u16 = 0x20;
    const RETURN: u16 = 0x06;
    const AND: u16 = 0x54;
    const JUMP: u16 = 0x05;
    const JUMP_EQUAL: u16 = 0x15;
    const JUMP_GREATER: u16 = 0x25;
    const JUMP_AT_LEAST: u16 = 0x35;
    const JUMP_SET: u16 = 0x45;
    let (mut accumulator, mut at) = (0u32, 0usize);
    loop {
        let one = program.get(at * 8..at * 8 + 8)?;
        let (op, jt, jf) = (u16::from_ne_bytes([one[0], one[1]]), one[2], one[3]);
        let k = u32::from_ne_bytes([one[4], one[5], one[6], one[7]]);
        let branch = |holds: bool| usize::from(if holds { jt } else { jf });
        let mut skip = 0;
        match op {
            RETURN => return Some(k),
            LOAD => accumulator = word(k)?,
            AND => accumulator &= k,
            JUMP => skip = k as usize,
            JUMP_EQUAL => skip = branch(accumulator == k),
            JUMP_GREATER => skip = branch(accumulator > k),
            JUMP_AT_LEAST => skip = branch(accumulator >= k),
            JUMP_SET => skip = branch(accumulator & k != 0),
            _ => return None,
        }
        at += 1 + skip; // only forward: it ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// LOAD number; JEQ 45, 0, 1; RET ALLOW; RET ERRNO 1.
    fn only_45() -> Vec<u8> {
        let program = [
            (0x20u16, 0u8, 0u8, 0u32),
            (0x15, 0, 1, 45),
            (6, 0, 0, 0x7fff_0000),
            (6, 0, 0, 0x5_0001),
        ];
        let one = |(op, jt, jf, k): (u16, u8, u8, u32)| {
            [&op.to_ne_bytes()[..], &[jt, jf], &k.to_ne_bytes()].concat()
        };
        program.into_iter().flat_map(one).collect()
    }

    #[test]
    fn a_call_is_let_go_or_not_by_its_number() {
        assert!(lets_go(&only_45(), 45));
        assert!(!lets_go(&only_45(), 46));
    }

    #[test]
    fn what_the_kernel_would_not_load_lets_nothing_go() {
        assert!(!lets_go(&only_45()[..16], 45), "without an end");
        assert!(!lets_go(&[0xff; 8], 45), "an unknown operation");
        assert!(!lets_go(&[], 45));
    }
}
