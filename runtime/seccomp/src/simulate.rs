//! A machine for BPF programs, so that tests can ask about any system call of any machine.

use crate::assembler::{AND, JUMP, JUMP_AT_LEAST, JUMP_EQUAL, LOAD, RETURN};

/// `struct seccomp_data` without the instruction pointer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) audit: u32,
    pub(crate) number: u32,
    pub(crate) args: [u64; 6],
}

pub(crate) const ALLOW: u32 = 0x7fff_0000;

pub(crate) const fn errno(errno: u32) -> u32 {
    0x0005_0000 | errno
}

impl Call {
    pub(crate) fn new(audit: u32, number: u32) -> Call {
        Call { audit, number, args: [0; 6] }
    }

    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.number,
            4 => self.audit,
            _ => {
                let arg = self.args[(offset as usize - 16) / 8];
                if offset.is_multiple_of(8) { arg as u32 } else { (arg >> 32) as u32 }
            }
        }
    }
}

/// What the program returns. Panics where the kernel would refuse to load it.
pub(crate) fn run(code: &[u8], call: Call) -> u32 {
    const JUMP_GREATER: u16 = 0x25;
    const JUMP_SET: u16 = 0x45;
    let mut accumulator = 0u32;
    let mut at = 0;
    loop {
        let one = &code[at * 8..at * 8 + 8];
        let (op, jt, jf) = (u16::from_ne_bytes([one[0], one[1]]), one[2], one[3]);
        let k = u32::from_ne_bytes([one[4], one[5], one[6], one[7]]);
        let holds = match op {
            RETURN => return k,
            LOAD => {
                accumulator = call.word(k);
                at += 1;
                continue;
            }
            AND => {
                accumulator &= k;
                at += 1;
                continue;
            }
            JUMP => {
                at += 1 + k as usize;
                continue;
            }
            JUMP_EQUAL => accumulator == k,
            JUMP_AT_LEAST => accumulator >= k,
            JUMP_GREATER => accumulator > k,
            JUMP_SET => accumulator & k != 0,
            other => panic!("an operation {other:#x} that libseccomp does not use"),
        };
        at += 1 + usize::from(if holds { jt } else { jf });
    }
}
