//! Random kernels, run thread by thread: threads come equally often to a barrier that is not refused.

use std::fmt::Write;

use super::{check, module};

const THREADS: u32 = 128;
const REGISTERS: usize = 6;
/// Rounds of a loop, if nothing ends it.
const ROUNDS: u32 = 3;

/// Numbers that are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from(self.0 >> 33).unwrap() % limit
    }

    fn register(&mut self) -> usize {
        usize::try_from(self.below(6)).unwrap()
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::try_from(self.below(u32::try_from(all.len()).unwrap())).unwrap()]
    }
}

/// `to = a op b`, the latter a register or a number.
#[derive(Clone, Copy)]
struct Set {
    op: &'static str,
    to: usize,
    a: usize,
    b: Result<usize, u32>,
}

/// `a op b`, the latter a register or a number.
#[derive(Clone, Copy)]
struct Ask {
    op: &'static str,
    a: usize,
    b: Result<usize, u32>,
}

enum Node {
    Set(Set),
    /// Or nothing, by the answer.
    SetIf(Ask, Set),
    If(Ask, Vec<Node>, Vec<Node>),
    /// While the answer is yes, the first round without asking.
    Loop(Vec<Node>, Ask),
    Break(Ask),
    Return(Ask),
    Barrier(u32),
}

const OPS: [&str; 10] = [
    "add.s32",
    "sub.s32",
    "and.b32",
    "or.b32",
    "xor.b32",
    "shl.b32",
    "shr.u32",
    "mul.lo.s32",
    "mov.u32",
    "min.u32",
];
const ASKS: [&str; 6] = ["lt.u32", "ge.u32", "gt.u32", "le.u32", "eq.s32", "lt.s32"];
const NUMBERS: [u32; 12] = [0, 1, 2, 3, 5, 6, 7, 31, 32, 63, 64, 96];

struct Maker {
    random: Random,
    barriers: u32,
}

impl Maker {
    fn operand(&mut self) -> Result<usize, u32> {
        if self.random.below(3) == 0 {
            Ok(self.random.register())
        } else {
            Err(self.random.of(&NUMBERS))
        }
    }

    fn ask(&mut self) -> Ask {
        Ask {
            op: self.random.of(&ASKS),
            a: self.random.register(),
            b: self.operand(),
        }
    }

    fn set(&mut self) -> Set {
        Set {
            op: self.random.of(&OPS),
            to: self.random.register(),
            a: self.random.register(),
            b: self.operand(),
        }
    }

    fn nodes(&mut self, depth: u32, in_loop: bool) -> Vec<Node> {
        (0..=self.random.below(4))
            .map(|_| self.node(depth, in_loop))
            .collect()
    }

    fn node(&mut self, depth: u32, in_loop: bool) -> Node {
        match self.random.below(if depth == 0 { 7 } else { 12 }) {
            0..=3 => Node::Set(self.set()),
            4 => Node::SetIf(self.ask(), self.set()),
            5 => match self.random.below(8) {
                0 => Node::Return(self.ask()),
                1..=3 if in_loop => Node::Break(self.ask()),
                _ => self.barrier(),
            },
            6 => self.barrier(),
            7..=9 => {
                let ask = self.ask();
                Node::If(
                    ask,
                    self.nodes(depth - 1, in_loop),
                    self.nodes(depth - 1, in_loop),
                )
            }
            _ => Node::Loop(self.nodes(depth - 1, true), self.ask()),
        }
    }

    fn barrier(&mut self) -> Node {
        self.barriers += 1;
        Node::Barrier(self.barriers)
    }
}

/// The PTX of a kernel.
#[derive(Default)]
struct Writer {
    text: String,
    labels: u32,
}

impl Writer {
    fn ask(&mut self, ask: Ask) {
        let b = operand(ask.b);
        writeln!(self.text, "setp.{} %p1, %r{}, {b};", ask.op, ask.a).unwrap();
    }

    fn set(&mut self, set: Set) {
        let Set { op, to, a, b } = set;
        match op {
            "mov.u32" => writeln!(self.text, "{op} %r{to}, %r{a};").unwrap(),
            _ => writeln!(self.text, "{op} %r{to}, %r{a}, {};", operand(b)).unwrap(),
        }
    }

    fn label(&mut self) -> String {
        self.labels += 1;
        format!("L{}", self.labels)
    }

    fn nodes(&mut self, nodes: &[Node], out: &str, depth: usize) {
        for node in nodes {
            match node {
                Node::Set(set) => self.set(*set),
                Node::SetIf(ask, set) => {
                    self.ask(*ask);
                    self.text += "@%p1 ";
                    self.set(*set);
                }
                Node::If(ask, yes, no) => {
                    let (then, end) = (self.label(), self.label());
                    self.ask(*ask);
                    writeln!(self.text, "@%p1 bra {then};").unwrap();
                    self.nodes(no, out, depth);
                    writeln!(self.text, "bra.uni {end};\n{then}:").unwrap();
                    self.nodes(yes, out, depth);
                    writeln!(self.text, "{end}:").unwrap();
                }
                Node::Loop(body, ask) => {
                    let (start, end) = (self.label(), self.label());
                    let count = 20 + depth;
                    writeln!(self.text, "mov.u32 %r{count}, 0;\n{start}:").unwrap();
                    self.nodes(body, &end, depth + 1);
                    self.ask(*ask);
                    writeln!(
                        self.text,
                        "add.s32 %r{count}, %r{count}, 1;\nsetp.lt.u32 %p2, %r{count}, {ROUNDS};\n\
                         and.pred %p3, %p1, %p2;\n@%p3 bra {start};\n{end}:"
                    )
                    .unwrap();
                }
                Node::Break(ask) => {
                    self.ask(*ask);
                    writeln!(self.text, "@%p1 bra {out};").unwrap();
                }
                Node::Return(ask) => {
                    self.ask(*ask);
                    writeln!(self.text, "@%p1 ret;").unwrap();
                }
                Node::Barrier(number) => writeln!(self.text, "bar.sync {number};").unwrap(),
            }
        }
    }
}

fn operand(operand: Result<usize, u32>) -> String {
    operand.map_or_else(
        |number| number.to_string(),
        |register| format!("%r{register}"),
    )
}

/// One thread, and the barriers that it came to.
struct Thread {
    registers: [u32; REGISTERS],
    barriers: Vec<u32>,
}

/// How a list of nodes is left.
#[derive(PartialEq)]
enum Left {
    AtItsEnd,
    Break,
    Return,
}

impl Thread {
    fn value(&self, operand: Result<usize, u32>) -> u32 {
        operand.map_or_else(|number| number, |register| self.registers[register])
    }

    fn answer(&self, ask: Ask) -> bool {
        let (a, b) = (self.registers[ask.a], self.value(ask.b));
        match ask.op {
            "lt.u32" => a < b,
            "ge.u32" => a >= b,
            "gt.u32" => a > b,
            "le.u32" => a <= b,
            "eq.s32" => a == b,
            _ => a.cast_signed() < b.cast_signed(),
        }
    }

    fn set(&mut self, set: Set) {
        let (a, b) = (self.registers[set.a], self.value(set.b));
        self.registers[set.to] = match set.op {
            "add.s32" => a.wrapping_add(b),
            "sub.s32" => a.wrapping_sub(b),
            "and.b32" => a & b,
            "or.b32" => a | b,
            "xor.b32" => a ^ b,
            "shl.b32" => a.checked_shl(b).unwrap_or(0),
            "shr.u32" => a.checked_shr(b).unwrap_or(0),
            "mul.lo.s32" => a.wrapping_mul(b),
            "mov.u32" => a,
            _ => a.min(b),
        };
    }

    fn run(&mut self, nodes: &[Node]) -> Left {
        for node in nodes {
            let left = match node {
                Node::Set(set) => {
                    self.set(*set);
                    Left::AtItsEnd
                }
                Node::SetIf(ask, set) => {
                    if self.answer(*ask) {
                        self.set(*set);
                    }
                    Left::AtItsEnd
                }
                Node::If(ask, yes, _) if self.answer(*ask) => self.run(yes),
                Node::If(_, _, no) => self.run(no),
                Node::Loop(body, ask) => self.round(body, *ask),
                Node::Break(ask) if self.answer(*ask) => Left::Break,
                Node::Return(ask) if self.answer(*ask) => Left::Return,
                Node::Break(_) | Node::Return(_) => Left::AtItsEnd,
                Node::Barrier(number) => {
                    self.barriers.push(*number);
                    Left::AtItsEnd
                }
            };
            if left != Left::AtItsEnd {
                return left;
            }
        }
        Left::AtItsEnd
    }

    fn round(&mut self, body: &[Node], ask: Ask) -> Left {
        for _ in 0..ROUNDS {
            match self.run(body) {
                Left::Return => return Left::Return,
                Left::Break => break,
                Left::AtItsEnd if self.answer(ask) => {}
                Left::AtItsEnd => break,
            }
        }
        Left::AtItsEnd
    }
}

/// Registers begin with the thread's index, three things of it, and two numbers that threads share.
fn start(thread: u32) -> [u32; REGISTERS] {
    [thread, thread % 32, thread / 32, thread / 4 % 8, 7, 100]
}

const START: &str = "mov.u32 %r0, %tid.x;\nand.b32 %r1, %r0, 31;\nshr.u32 %r2, %r0, 5;\nbfe.u32 %r3, %r0, 2, 3;\n\
                     mov.u32 %r4, %ctaid.x;\nld.param.u32 %r5, [k_param_0];\n";

#[test]
fn threads_come_equally_often_to_a_barrier_that_is_not_refused() {
    let (mut of_all, mut of_warps) = (0, 0);
    for seed in 1..4000 {
        let random = Random(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(seed));
        let mut maker = Maker {
            random,
            barriers: 0,
        };
        let kernel = maker.nodes(3, false);
        let mut writer = Writer::default();
        writer.nodes(&kernel, "NOWHERE", 0);
        let text = module(&format!("{START}{}", writer.text));
        let findings = check(&text).unwrap();
        let run = |thread| {
            let mut thread = Thread {
                registers: start(thread),
                barriers: Vec::new(),
            };
            thread.run(&kernel);
            thread.barriers
        };
        let threads: Vec<Vec<u32>> = (0..THREADS).map(run).collect();
        for barrier in 1..=maker.barriers {
            let refused = |is_within_warp: bool| {
                let mut findings = findings.iter();
                findings.any(|finding| {
                    let mut waiting = finding.waiting.iter();
                    let text = format!("bar.sync {barrier}");
                    finding.is_within_warp == is_within_warp
                        && waiting.any(|place| place.text == text)
                })
            };
            let times =
                |thread: &Vec<u32>| thread.iter().filter(|&&other| other == barrier).count();
            let times: Vec<usize> = threads.iter().map(times).collect();
            let is_same = |threads: &[usize]| threads.iter().all(|&other| other == threads[0]);
            if !refused(false) && !refused(true) {
                assert!(is_same(&times), "seed {seed}, barrier {barrier}:\n{text}");
                of_all += u32::from(times[0] > 0);
            } else if !refused(true) {
                assert!(
                    times.chunks(32).all(is_same),
                    "seed {seed}, barrier {barrier}:\n{text}"
                );
                of_warps += u32::from(!is_same(&times));
            }
        }
    }
    assert!(of_all > 1000 && of_warps > 100, "{of_all} {of_warps}");
}
