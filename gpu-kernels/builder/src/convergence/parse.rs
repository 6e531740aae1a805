//! PTX of an entry as a [`Body`].
//!
//! Inline assembly stands in braces and declares names of its own (`{ .reg .pred p; ... }`), which end with it; two
//! copies of such a block mean different registers and labels.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};

use super::body::{Body, Instr, Operand, Part};
use super::operation::{Operation, base};

/// Reads the body of the entry in a module.
///
/// # Errors
/// The text is no PTX in normal form, or calls functions.
pub(super) fn parse(module: &str) -> Result<Body<'_>> {
    let entry = module.find(".entry ").context("the PTX has no entry")?;
    let open = module[entry..].find("\n{");
    let open = entry + open.context("the entry has no body")?;
    let mut parser = Parser {
        module,
        at: open + 2,
        prefixes: Vec::new(),
        scopes: vec![Scope::default()],
        num_registers: 0,
        instrs: Vec::new(),
        operations: HashMap::new(),
        jumps: Vec::new(),
        tables: Vec::new(),
    };
    while parser.statement()? {}
    Ok(Body {
        threads: threads(&module[entry..open]),
        instrs: parser.instrs,
        num_registers: parser.num_registers,
    })
}

/// The x of `.maxntid x, 1, 1`.
fn threads(header: &str) -> Option<u32> {
    let sizes = header
        .lines()
        .find_map(|line| line.trim().strip_prefix(".maxntid "))?;
    let mut sizes = sizes.split(',').map(str::trim);
    let x = sizes.next()?.parse().ok()?;
    sizes.all(|size| size == "1").then_some(x)
}

/// Names that are known until a brace closes.
#[derive(Default)]
struct Scope<'t> {
    registers: HashMap<&'t str, usize>,
    labels: HashMap<&'t str, usize>,
    /// Jumps written here, as an index into `Parser::jumps`.
    first_jump: usize,
}

struct Parser<'t> {
    module: &'t str,
    at: usize,
    /// The `%r` of `.reg .b32 %r<9>`.
    prefixes: Vec<&'t str>,
    scopes: Vec<Scope<'t>>,
    num_registers: usize,
    instrs: Vec<Instr<'t>>,
    /// Opcodes that were met.
    operations: HashMap<&'t str, Operation>,
    /// Instructions that jump, and to which label: until the label is found.
    jumps: Vec<(usize, &'t str)>,
    /// Labels of `.branchtargets`, by the label of the list.
    tables: Vec<(&'t str, Vec<&'t str>)>,
}

impl<'t> Parser<'t> {
    /// Reads a brace, a label, a declaration or an instruction. False at the end of the body.
    fn statement(&mut self) -> Result<bool> {
        let module = self.module;
        let rest = module[self.at..].trim_start();
        self.at = module.len() - rest.len();
        match rest.bytes().next() {
            Some(b'{') => {
                self.at += 1;
                self.scopes.push(Scope {
                    first_jump: self.jumps.len(),
                    ..Scope::default()
                });
                return Ok(true);
            }
            Some(b'}') => {
                self.at += 1;
                return self.close();
            }
            Some(_) => {}
            None => bail!("the body of the entry does not end"),
        }
        let end = rest.find([';', ':']).context("a statement does not end")?;
        let is_label = rest.as_bytes()[end] == b':'
            && !rest[end..].starts_with("::")
            && rest[..end].bytes().all(is_name);
        if is_label {
            self.at += end + 1;
            let next = self.instrs.len();
            self.scope().labels.insert(&rest[..end], next);
            return Ok(true);
        }
        let end = rest.find(';').context("a statement does not end")?;
        let at = self.at;
        self.at += end + 1;
        let text = rest[..end].trim_end();
        if let Some(declaration) = text.strip_prefix(".reg") {
            self.declare(declaration);
        } else if let Some(list) = text.strip_prefix(".branchtargets") {
            let before = module[..at].trim_end().trim_end_matches(':');
            let name = before.rsplit(|c: char| c.is_whitespace()).next();
            let labels = list.split(',').map(str::trim).collect();
            self.tables.push((name.unwrap_or_default(), labels));
        } else if !text.starts_with('.') && !text.is_empty() {
            self.instruction(at, text)?;
        }
        Ok(true)
    }

    fn scope(&mut self) -> &mut Scope<'t> {
        self.scopes.last_mut().expect("the body is a scope")
    }

    /// `.reg .b32 a, b;` or `.reg .b32 %r<9>;`
    fn declare(&mut self, declaration: &'t str) {
        let names = declaration.trim_start();
        let names = names
            .split_once(char::is_whitespace)
            .map_or("", |(_, names)| names);
        for name in names.split(',') {
            // A vector has its length before its type.
            let name = name.split_whitespace().last().unwrap_or_default();
            if let Some((prefix, _)) = name.split_once('<') {
                self.prefixes.push(prefix);
            } else {
                let register = self.num_registers;
                self.num_registers += 1;
                self.scope().registers.insert(name, register);
            }
        }
    }

    fn instruction(&mut self, at: usize, text: &'t str) -> Result<()> {
        let mut rest = text;
        let (mut guard, mut is_negated) = (None, false);
        if let Some(guarded) = text.strip_prefix('@') {
            let (name, after) = guarded
                .split_once(char::is_whitespace)
                .with_context(|| format!("`{text}` has no opcode"))?;
            guard = match self.part(name.trim_start_matches('!')) {
                Part::Register(register) => Some(register),
                other => bail!("`{text}` is guarded by {other:?}"),
            };
            is_negated = name.starts_with('!');
            rest = after.trim_start();
        }
        let (opcode, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        ensure!(
            base(opcode) != "call",
            "`{text}` calls a function, into which nothing here looks"
        );
        let index = self.instrs.len();
        let operands = split(rest);
        if ["bra", "brx"].contains(&base(opcode)) {
            let label = operands.last().context("a jump has no label")?;
            self.jumps.push((index, label));
        }
        let operands: Vec<_> = operands
            .into_iter()
            .map(|text| self.operand(text))
            .collect();
        let operation = self.operations.entry(opcode);
        let operation = *operation.or_insert_with(|| Operation::of(opcode));
        let stores = operands
            .first()
            .is_none_or(|to: &Operand<'_>| to.is_address);
        self.instrs.push(Instr {
            at,
            text,
            opcode,
            operation,
            guard,
            is_negated,
            written: usize::from(operation.has_result && !stores),
            operands,
            kept: Vec::new(),
            targets: Vec::new(),
        });
        Ok(())
    }

    fn operand(&mut self, text: &'t str) -> Operand<'t> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(start) = rest.find(|c: char| c.is_ascii_alphanumeric() || "%_$-".contains(c))
        {
            rest = &rest[start..];
            let end = 1 + rest[1..].bytes().take_while(|&byte| is_name(byte)).count();
            parts.push(self.part(&rest[..end]));
            rest = &rest[end..];
        }
        Operand {
            parts,
            is_address: text.starts_with('['),
            is_negated: text.contains('!'),
        }
    }

    /// What a name or a number stands for.
    fn part(&mut self, name: &'t str) -> Part<'t> {
        if name.starts_with(|c: char| c == '-' || c.is_ascii_digit()) {
            return number(name).map_or(Part::Shared(name), Part::Number);
        }
        let known = self
            .scopes
            .iter()
            .rev()
            .find_map(|scope| scope.registers.get(name));
        if let Some(&register) = known {
            return Part::Register(register);
        }
        let Some(plain) = name.strip_prefix('%') else {
            return Part::Shared(name);
        };
        let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
        if self.prefixes.contains(&prefix) {
            let register = self.num_registers;
            self.num_registers += 1;
            // Whatever block it is met in, it is the body's.
            self.scopes[0].registers.insert(name, register);
            return Part::Register(register);
        }
        match plain.split('.').next().unwrap_or_default() {
            "tid" if plain == "tid.x" => Part::Thread,
            "laneid" => Part::Lane,
            "warpid" => Part::Warp,
            "ctaid" | "nctaid" | "ntid" | "gridid" | "clusterid" | "nclusterid"
            | "cluster_ctaid" | "cluster_nctaid" | "dynamic_smem_size" => Part::Shared(name),
            _ => Part::AnyThread,
        }
    }

    /// Ends a block: what jumps there and has its label there is resolved. False if it was the body.
    fn close(&mut self) -> Result<bool> {
        let scope = self.scopes.pop().expect("the body is a scope");
        let is_body = self.scopes.is_empty();
        let mut open = Vec::new();
        for (jump, label) in self.jumps.split_off(scope.first_jump) {
            let names = self.tables.iter().find(|(name, _)| *name == label);
            let names = names.map_or_else(|| vec![label], |(_, labels)| labels.clone());
            for name in names {
                match scope.labels.get(name) {
                    Some(&target) => self.instrs[jump].targets.push(target),
                    None if is_body => bail!("there is no label `{name}`"),
                    None => open.push((jump, name)),
                }
            }
        }
        self.jumps.extend(open);
        Ok(!is_body)
    }
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_$%.".contains(&byte)
}

/// A whole number, as PTX writes it.
fn number(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text),
    };
    let digits = digits.trim_end_matches('U');
    let magnitude = match digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => digits.parse().ok()?,
    };
    Some(magnitude.cast_signed().wrapping_mul(sign))
}

/// Operands, at the commas that stand in no brackets.
fn split(text: &str) -> Vec<&str> {
    let mut operands = Vec::new();
    let (mut depth, mut start) = (0usize, 0);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' | b'[' | b'(' => depth += 1,
            b'}' | b']' | b')' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                operands.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    if !text[start..].trim().is_empty() {
        operands.push(text[start..].trim());
    }
    operands
}
