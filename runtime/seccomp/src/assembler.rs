//! Writes a program from its end: the targets of a jump are there before it, and answers are shared.

/// One `struct sock_filter` of linux/filter.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) jt: u8,
    pub(crate) jf: u8,
    pub(crate) k: u32,
}

// The operations in use, of linux/bpf_common.h.
pub(crate) const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
pub(crate) const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
pub(crate) const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
pub(crate) const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
pub(crate) const JUMP_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
pub(crate) const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// How far a condition jumps: 255, less the two instructions that another one may put before it.
const REACH: usize = 253;

/// An instruction, counted from the end of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(usize);

/// What is to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// What comes behind the program decides.
    Pass,
    Return(u32),
    /// It goes on there.
    At(Place),
}

#[derive(Debug, Default)]
pub(crate) struct Assembler {
    backwards: Vec<Instruction>,
    answers: Vec<(Place, Verdict)>,
}

impl Assembler {
    pub(crate) fn finish(mut self) -> Vec<Instruction> {
        self.backwards.reverse();
        self.backwards
    }

    /// A binary search for the accumulator's segment. Each starts at its number and lasts to the next.
    pub(crate) fn search(&mut self, segments: &[(u32, Verdict)]) -> Place {
        let [(_, verdict)] = segments else {
            let (low, high) = segments.split_at(segments.len() / 2);
            let (at_least, below) = (self.search(high), self.search(low));
            return self.condition(JUMP_AT_LEAST, high[0].0, at_least, below);
        };
        self.verdict(*verdict)
    }

    /// The place of the condition.
    pub(crate) fn condition(&mut self, code: u16, k: u32, yes: Place, no: Place) -> Place {
        // The second target first: bringing it near may move the first out of reach, and the second stays within the
        // two instructions kept in hand.
        let no = self.near(no);
        let yes = self.near(yes);
        let distance = |target: Place| self.over(target) as u8;
        self.push(Instruction { code, jt: distance(yes), jf: distance(no), k })
    }

    pub(crate) fn and(&mut self, mask: u32, then: Place) -> Place {
        self.before(then, Instruction { code: AND, jt: 0, jf: 0, k: mask })
    }

    /// Loads a word of `struct seccomp_data` into the accumulator.
    pub(crate) fn load(&mut self, offset: u32, then: Place) -> Place {
        self.before(then, Instruction { code: LOAD, jt: 0, jf: 0, k: offset })
    }

    /// A place where that happens, the nearest there is.
    pub(crate) fn verdict(&mut self, verdict: Verdict) -> Place {
        let known = self.answers.iter().rev().find(|(_, known)| *known == verdict);
        known.map(|(at, _)| *at).unwrap_or_else(|| self.answer(verdict))
    }

    /// Whoever goes on there may jump there instead of to a copy.
    pub(crate) fn keep(&mut self, place: Place) -> Verdict {
        let verdict = Verdict::At(place);
        self.answers.push((place, verdict));
        verdict
    }

    fn answer(&mut self, verdict: Verdict) -> Place {
        let at = match verdict {
            Verdict::Pass => self.jump(self.backwards.len()),
            Verdict::Return(k) => self.push(Instruction { code: RETURN, jt: 0, jf: 0, k }),
            Verdict::At(place) => self.jump(self.over(place)),
        };
        self.answers.push((at, verdict));
        at
    }

    fn before(&mut self, then: Place, instruction: Instruction) -> Place {
        match self.over(then) {
            0 => {}
            over => _ = self.jump(over),
        }
        self.push(instruction)
    }

    /// A place within a condition's reach that leads to the target.
    fn near(&mut self, target: Place) -> Place {
        let over = self.over(target);
        if over <= REACH {
            return target;
        }
        match self.answers.iter().find(|(at, _)| *at == target) {
            Some((_, verdict)) => self.answer(*verdict),
            None => self.jump(over),
        }
    }

    fn jump(&mut self, over: usize) -> Place {
        self.push(Instruction { code: JUMP, jt: 0, jf: 0, k: over as u32 })
    }

    /// How many instructions lie between the one to be written next and the target.
    fn over(&self, target: Place) -> usize {
        self.backwards.len() - 1 - target.0
    }

    fn push(&mut self, instruction: Instruction) -> Place {
        self.backwards.push(instruction);
        Place(self.backwards.len() - 1)
    }
}
