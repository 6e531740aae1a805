//! Small kernels, and what is refused of them.

mod random;
mod values;

use super::*;

/// A module whose entry has this body: 128 threads in a block, registers of each kind, a parameter in `%r90`, the
/// thread's index in `%r91`.
fn module(body: &str) -> String {
    format!(
        ".version 8.1\n.target sm_90\n.address_size 64\n.visible .entry k(\n\t.param .u32 k_param_0\n)\n.maxntid 128, 1, 1\n{{\n\
         \t.reg .pred %p<99>;\n\t.reg .b32 %r<99>;\n\t.reg .b64 %rd<99>;\n\
         \tld.param.u32 %r90, [k_param_0];\n\tmov.u32 %r91, %tid.x;\n{body}\n\tret;\n}}\n"
    )
}

/// Opcodes that wait for such as may not come, in their order; and a `!` before those for which lanes of a warp part.
fn refused(body: &str) -> Vec<String> {
    let findings = check(&module(body)).unwrap();
    let waiting = findings.iter().flat_map(|finding| {
        let mark = if finding.is_within_warp { "!" } else { "" };
        let opcodes = finding
            .waiting
            .iter()
            .map(|place| place.text.split_whitespace());
        opcodes.map(move |mut words| {
            let opcode = words.find(|word| !word.starts_with('@'));
            format!("{mark}{}", opcode.unwrap_or_default())
        })
    });
    waiting.collect()
}

/// A branch on `condition`, which defines `%p1`, with an arm for threads that take it and one for those that do not.
fn arms(condition: &str, taken: &str, not_taken: &str) -> String {
    format!("{condition}\n@%p1 bra TAKEN;\n{not_taken}\nbra.uni DONE;\nTAKEN:\n{taken}\nDONE:\n")
}

const BY_LANE: &str = "setp.lt.u32 %p1, %r91, 5;";
const BY_WARP: &str = "setp.lt.u32 %p1, %r91, 64;";
const BY_BLOCK: &str = "setp.lt.u32 %p1, %r90, 5;";
const BARRIER: &str = "bar.sync 0;";
const SHUFFLE: &str = "shfl.sync.bfly.b32 %r2, %r91, 1, 0x1f, 0xffffffff;";
const NONE: [&str; 0] = [];

#[test]
fn a_barrier_in_both_arms_of_a_branch_is_two_barriers() {
    let both = |condition| refused(&arms(condition, BARRIER, BARRIER));
    assert_eq!(both(BY_LANE), ["!bar.sync", "!bar.sync"]);
    assert_eq!(both(BY_WARP), ["bar.sync", "bar.sync"]);
    assert_eq!(both(BY_BLOCK), NONE);
    assert_eq!(refused(&arms(BY_LANE, "", "")), NONE);
    assert_eq!(refused(&(arms(BY_LANE, "", "") + BARRIER)), NONE);
}

#[test]
fn with_a_number_of_threads_other_warps_may_stay_away() {
    let one = |condition| refused(&arms(condition, "bar.sync 1, 64;", ""));
    assert_eq!(one(BY_LANE), ["!bar.sync"]);
    assert_eq!(one(BY_WARP), NONE);
    let arrive = arms(BY_WARP, "bar.arrive 1, 128;", "bar.sync 1, 128;");
    assert_eq!(refused(&arrive), NONE);
    let red = |operands: &str| {
        let red = format!("barrier.red.popc.u32 %r1, {operands}, %p9;");
        refused(&arms(BY_WARP, &red, ""))
    };
    assert_eq!(red("0"), ["barrier.red.popc.u32"]);
    assert_eq!(red("0, 64"), NONE);
}

#[test]
fn instructions_of_a_warp_need_its_lanes_and_those_of_four_need_the_warps() {
    for instr in [
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%r1, %r2, %r3, %r4}, {%r5, %r6, %r7, %r8}, {%r9, %r10}, {%r1, %r2, %r3, %r4};",
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1, %r2, %r3, %r4}, [%r5];",
        "movmatrix.sync.aligned.m8n8.trans.b16 %r1, %r2;",
        "stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r1], {%r2};",
    ] {
        assert_eq!(refused(&arms(BY_LANE, instr, instr)).len(), 2, "{instr}");
        assert_eq!(refused(&arms(BY_WARP, instr, "")), NONE, "{instr}");
    }
    let group = "shr.u32 %r1, %r91, 7; setp.eq.s32 %p1, %r1, 0;";
    for instr in [
        "wgmma.fence.sync.aligned;",
        "setmaxnreg.inc.sync.aligned.u32 232;",
    ] {
        let wide = |condition: &str| {
            let text = module(&arms(condition, instr, "")).replace("128, 1, 1", "384, 1, 1");
            check(&text).unwrap().len()
        };
        assert_eq!((wide(BY_WARP), wide(group)), (1, 0), "{instr}");
    }
}

#[test]
fn an_exchange_needs_the_lanes_that_it_names() {
    let one = |condition, instr: &str| refused(&arms(condition, instr, ""));
    for instr in [
        SHUFFLE,
        "vote.sync.ballot.b32 %r1, %p9, -1;",
        "match.any.sync.b32 %r1, %r2, 0xffffffff;",
        "redux.sync.add.s32 %r1, %r2, 0xffffffff;",
        "bar.warp.sync 0xffffffff;",
        "mov.u32 %r3, -1; bar.warp.sync %r3;",
        "activemask.b32 %r3; bar.warp.sync %r3;",
    ] {
        assert_eq!(one(BY_LANE, instr).len(), 1, "{instr}");
        assert_eq!(one(BY_WARP, instr), NONE, "{instr}");
    }
    assert_eq!(one(BY_LANE, "bar.warp.sync 0x1f;"), NONE);
    assert_eq!(one(BY_LANE, "mov.u32 %r3, 31; bar.warp.sync %r3;"), NONE);
}

#[test]
fn copies_of_an_exchange_find_each_other() {
    let twice = format!("{SHUFFLE} {SHUFFLE}");
    let both = |taken: &str, not_taken: &str| refused(&arms(BY_LANE, taken, not_taken)).len();
    assert_eq!(both(SHUFFLE, SHUFFLE), 0);
    assert_eq!(both(&twice, &twice), 0);
    assert_eq!(both(&twice, SHUFFLE), 3);
    assert_eq!(both(SHUFFLE, &SHUFFLE.replace("bfly", "idx")), 2);
    assert_eq!(both(&format!("@%p9 {SHUFFLE}"), SHUFFLE), 2);
    let with_barrier = format!("{SHUFFLE} {BARRIER}");
    assert_eq!(
        refused(&arms(BY_LANE, &with_barrier, &with_barrier)),
        ["!bar.sync", "!bar.sync"]
    );
    // Another branch in an arm.
    let inner = |taken: &str, not_taken: &str| {
        format!("@%p2 bra IN;\n{not_taken}\nbra.uni OUT;\nIN:\n{taken}\nOUT:\n")
    };
    assert_eq!(both(&inner(SHUFFLE, SHUFFLE), SHUFFLE), 0);
    assert_eq!(both(&inner(SHUFFLE, ""), SHUFFLE), 2);
    // What a lane is given is what the other had in its arm: here, something of its warp.
    let by_16 = |to: &str, of: &str| format!("shfl.sync.bfly.b32 {to}, {of}, 16, 0x1f, -1;");
    let arms_of_one = arms(
        "mov.u32 %r6, %laneid; setp.lt.u32 %p1, %r6, 5;",
        &by_16("%r2", "%r90"),
        &format!("mov.u32 %r2, %r90; {}", by_16("%r5", "%r3")),
    );
    let asked = arms("setp.eq.s32 %p1, %r4, 0;", BARRIER, "");
    let asked = asked.replace("TAKEN", "THEN").replace("DONE", "END");
    let text = format!(
        "shr.u32 %r3, %r91, 5;\n{arms_of_one}\nshfl.sync.idx.b32 %r4, %r2, 0, 0x1f, -1;\n{asked}"
    );
    assert_eq!(refused(&text), ["bar.sync"]);
}

#[test]
fn loops_by_how_often_threads_go_round() {
    let round = |limit: &str, within: &str| {
        format!(
            "mov.u32 %r1, 0;\nROUND:\n{within}\nadd.s32 %r1, %r1, 1;\nsetp.lt.u32 %p1, %r1, {limit};\n@%p1 bra ROUND;\n"
        )
    };
    assert_eq!(refused(&round("%r90", BARRIER)), NONE);
    assert_eq!(refused(&round("%r91", BARRIER)), ["!bar.sync"]);
    assert_eq!(refused(&round("%r91", SHUFFLE)), ["!shfl.sync.bfly.b32"]);
    let warp = "shr.u32 %r92, %r91, 5;\n".to_owned();
    assert_eq!(
        refused(&(warp.clone() + &round("%r92", BARRIER))),
        ["bar.sync"]
    );
    assert_eq!(refused(&(warp + &round("%r92", SHUFFLE))), NONE);
    // A thread that left early brings an earlier value along.
    let behind = arms("setp.eq.u32 %p1, %r1, 9;", BARRIER, "");
    assert_eq!(refused(&(round("%r91", "") + &behind)), ["!bar.sync"]);
    assert_eq!(refused(&(round("%r90", "") + &behind)), NONE);
    let load = "ld.shared.b32 %r1, [%r90];";
    for (before, limit, expected) in [
        ("", "%r91", "!bar.sync"),
        ("@%p9 bra BEHIND;", "%r91", "!bar.sync"),
        ("@%p9 bra BEHIND;", "%r92", "bar.sync"),
    ] {
        let round = round(limit, "")
            .replace("%r1,", "%r3,")
            .replace("ROUND:", &format!("ROUND: {load}"));
        let text = format!(
            "shr.u32 %r92, %r91, 5;\nmov.u32 %r1, 2;\n{before}\n{round}\nBEHIND:\n{behind}"
        );
        assert_eq!(refused(&text), [expected], "{before} {limit}");
    }
    // From the thread's own index on, in steps of the whole block, to a limit that is no multiple of it.
    let strided = |step: u32| {
        format!(
            "mov.u32 %r1, 0;\nROUND:\nadd.s32 %r3, %r1, %r91;\nsetp.lt.u32 %p1, %r3, 4096;\n@%p1 bra IN;\nbra.uni OUT;\nIN:\n{BARRIER}\nadd.s32 %r1, %r1, {step};\nbra.uni ROUND;\nOUT:\n"
        )
    };
    assert_eq!(refused(&strided(128)), NONE);
    assert_eq!(refused(&strided(100)), ["!bar.sync"]);
}

#[test]
fn threads_that_return_early_are_missed() {
    let early = |condition: &str| refused(&format!("{condition}\n@%p1 ret;\n{BARRIER}"));
    assert_eq!(early(BY_LANE), ["!bar.sync"]);
    assert_eq!(early(BY_WARP), ["bar.sync"]);
    assert_eq!(early(BY_BLOCK), NONE);
    // Nobody misses those of a grid that fails.
    assert_eq!(refused(&format!("{BY_LANE}\n@%p1 trap;\n{BARRIER}")), NONE);
    assert_eq!(refused(&(arms(BY_LANE, "trap; exit;", "") + BARRIER)), NONE);
    assert_eq!(
        refused(&format!("{BY_LANE}\n@!%p1 {BARRIER}")),
        ["!bar.sync"]
    );
}

#[test]
fn a_condition_that_is_asked_twice_has_one_answer() {
    // Warps may return early if the parameter is 0; there is a barrier if it is not.
    let twice = |second: &str| {
        format!(
            "setp.eq.u32 %p2, %r90, 0;\nmov.u32 %r1, %ctaid.x;\n@!%p2 bra SECOND;\nshr.u32 %r1, %r91, 5;\nSECOND:\nsetp.gt.u32 %p1, %r1, 2;\n@%p1 ret;\n@{second} bra END;\n{BARRIER}\nEND:\n"
        )
    };
    assert_eq!(refused(&twice("%p2")), NONE);
    assert_eq!(refused(&twice("!%p2")), ["bar.sync"]);
    assert_eq!(refused(&twice("%p3")), ["bar.sync"]);
    // Not if it is another each round.
    let odd = format!(
        "mov.u32 %r3, 0;\nmov.u32 %r1, %ctaid.x;\nROUND:\nand.b32 %r4, %r3, 1;\nsetp.eq.u32 %p2, %r4, 0;\n\
         @!%p2 bra SECOND;\nshr.u32 %r1, %r91, 5;\nSECOND:\nsetp.gt.u32 %p1, %r1, 2;\n@%p1 bra NEXT;\n\
         @%p2 bra NEXT;\n{BARRIER}\nNEXT:\nadd.s32 %r3, %r3, 1;\nsetp.lt.u32 %p3, %r3, %r90;\n@%p3 bra ROUND;\n"
    );
    assert_eq!(refused(&odd), ["bar.sync"]);
}

#[test]
fn a_table_of_labels_is_a_branch() {
    let by = |index: &str| {
        refused(&format!(
            "TABLE: .branchtargets ONE, TWO;\nbrx.idx {index}, TABLE;\nONE:\n{BARRIER}\nbra.uni END;\nTWO:\n{BARRIER}\nEND:\n"
        ))
    };
    assert_eq!(by("%r90"), NONE);
    assert_eq!(by("%r91"), ["!bar.sync", "!bar.sync"]);
}

#[test]
fn a_finding_says_where_and_why() {
    let text = module(&arms(BY_LANE, BARRIER, ""));
    let [finding] = &check(&text).unwrap()[..] else {
        panic!("one branch is to blame");
    };
    let line = |place: &Place| text.lines().nth(place.line - 1).map(str::trim);
    for place in finding
        .because
        .iter()
        .chain([&finding.branch, &finding.waiting[0]])
    {
        assert_eq!(line(place), Some(&*format!("{};", place.text)));
    }
    let because: Vec<&str> = finding.because.iter().map(|place| &*place.text).collect();
    assert_eq!(
        because,
        ["setp.lt.u32 %p1, %r91, 5", "mov.u32 %r91, %tid.x"]
    );
    let text = finding.to_string();
    assert!(
        text.starts_with("lanes of a warp part at line 15: `@%p1 bra TAKEN`"),
        "{text}"
    );
    assert!(
        text.ends_with("do not come together to line 19: `bar.sync 0`"),
        "{text}"
    );
}

#[test]
fn what_is_not_understood_is_an_error() {
    for (text, message) in [
        (module("call.uni f;"), "calls a function"),
        (module("bra NOWHERE;"), "NOWHERE"),
        (
            module(BARRIER).trim_end_matches("}\n").to_owned(),
            "does not end",
        ),
        (".version 8.1\n".to_owned(), "no entry"),
    ] {
        let error = check(&text).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
    // Of a block of more dimensions a thread's x says nothing.
    let text = module(&arms(BY_WARP, SHUFFLE, ""));
    assert_eq!(check(&text).unwrap().len(), 0);
    assert_eq!(
        check(&text.replace("128, 1, 1", "16, 8, 1")).unwrap().len(),
        1
    );
}
