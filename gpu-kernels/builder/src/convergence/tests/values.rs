//! What values depend on, seen by who comes to a barrier behind a branch on them.

use super::{BARRIER, BY_LANE, NONE, arms, refused};

#[test]
fn a_value_is_what_its_sources_are() {
    let with = |text: &str| {
        refused(&arms(
            &format!("{text} setp.eq.u32 %p1, %r1, 3;"),
            BARRIER,
            "",
        ))
    };
    for same in [
        // As an opaque copy has it.
        "mov.u32 %r1, %r90;",
        "mov.u32 %r1, %ctaid.x; mad.lo.s32 %r1, %r1, %r90, 7;",
        "and.b32 %r2, %r91, 3; shr.u32 %r1, %r2, 2;",
        "mov.u32 %r2, shared_memory; ld.shared.v2.b32 {%r1, %r3}, [%r2+8];",
        "mov.b64 %rd1, {%r91, %r90}; mov.b64 {_, %r1}, %rd1;",
        "and.b32 %r2, %r91, 31; shfl.sync.idx.b32 %r1, %r2, 0, 0x1f, -1;",
    ] {
        assert_eq!(with(same), NONE, "{same}");
    }
    for of_warp in [
        "shr.u32 %r1, %r91, 5;",
        "shr.u32 %r2, %r91, 2; and.b32 %r1, %r2, 0x3ffffff8;",
        "bfe.u32 %r1, %r91, 5, 2;",
        "div.u32 %r1, %r91, 96;",
        "mov.u32 %r2, 6; shr.u32 %r1, %r91, %r2;",
        "shfl.sync.idx.b32 %r1, %r91, 0, 0x1f, -1;",
        "mov.u32 %r2, %warpid; mul.lo.s32 %r1, %r2, 3;",
        "vote.sync.ballot.b32 %r1, %p9, -1;",
        "add.s32 %r2, %r91, -128; shr.u32 %r1, %r2, 5;",
    ] {
        let expected: &[&str] = if of_warp.starts_with("vote") {
            &[]
        } else {
            &["bar.sync"]
        };
        assert_eq!(with(of_warp), expected, "{of_warp}");
    }
    for own in [
        "mov.u32 %r1, %r91;",
        "mov.u32 %r1, %laneid;",
        "mov.u32 %r1, %clock;",
        "mov.u32 %r1, %tid.y;",
        "shr.u32 %r1, %r91, 4;",
        "shr.u32 %r1, %r91, %r90;",
        "add.s32 %r2, %r91, 1; shr.u32 %r1, %r2, 5;",
        "ld.shared.b32 %r1, [%r91];",
        "mov.u32 %r2, depot; ld.local.b32 %r1, [%r2];",
        "ld.volatile.global.b32 %r1, [%rd1];",
        "atom.global.add.u32 %r1, [%rd1], 1;",
        "activemask.b32 %r1;",
        "elect.sync %r2|%p9, -1; selp.b32 %r1, 1, 0, %p9;",
        "shfl.sync.idx.b32 %r1, %r91, 0, 0x1c1f, -1;",
        "shfl.sync.idx.b32 %r1, %r91, 0, 0x1f, 15;",
        "mov.u32 %r1, %r90; @%p9 mov.u32 %r1, 4; setp.eq.u32 %p9, %r91, 0; @%p9 mov.u32 %r1, 5;",
        "mov.u32 %r1, %r91; @%p9 mov.u32 %r1, %r90;",
        "shl.b32 %r2, %r91, 1; cvt.s64.s8 %rd1, %r2; shr.u64 %rd2, %rd1, 40; cvt.u32.u64 %r1, %rd2;",
    ] {
        assert_eq!(with(own), ["!bar.sync"], "{own}");
    }
}

#[test]
fn comparisons_with_a_multiple_of_32_tell_warps_apart() {
    for (condition, expected) in [
        ("lt.u32 %p1, %r91, 32", "bar.sync"),
        ("ge.u32 %p1, %r91, 96", "bar.sync"),
        ("gt.u32 %p1, %r91, 63", "bar.sync"),
        ("gt.s32 %p1, 64, %r91", "bar.sync"),
        ("gt.u32 %p1, %r91, 64", "!bar.sync"),
        ("lt.u32 %p1, %r91, 33", "!bar.sync"),
        ("lt.u32 %p1, %r91, %r90", "!bar.sync"),
        ("eq.u32 %p1, %r91, 32", "!bar.sync"),
    ] {
        let text = arms(&format!("setp.{condition};"), BARRIER, "");
        assert_eq!(refused(&text), [expected], "{condition}");
    }
}

#[test]
fn what_all_lanes_sum_up_they_all_know() {
    let steps = |lanes: &[u32]| {
        let mut text = "mov.u32 %r1, %laneid;\n".to_owned();
        for lanes in lanes {
            text += &format!(
                "mov.b32 %r2, %r1;\nmov.u32 %r3, {lanes};\nshfl.sync.bfly.b32 %r4, %r2, %r3, 0x1f, -1;\nadd.s32 %r1, %r4, %r1;\n"
            );
        }
        refused(&arms(&(text + "setp.gt.u32 %p1, %r1, 3;"), BARRIER, ""))
    };
    assert_eq!(steps(&[16, 8, 4, 2, 1]), NONE);
    assert_eq!(steps(&[1, 16, 2, 8, 4]), NONE);
    assert_eq!(steps(&[16, 8, 4, 2]), ["!bar.sync"]);
    assert_eq!(steps(&[16, 8, 4, 2, 3]), ["!bar.sync"]);
}

#[test]
fn what_is_chosen_by_the_way_depends_on_who_went_there() {
    let asked = arms("setp.eq.s32 %p1, %r1, 0;", BARRIER, "");
    let asked = asked.replace("TAKEN", "THEN").replace("DONE", "END");
    let chosen = |taken, not_taken| refused(&(arms(BY_LANE, taken, not_taken) + &asked));
    assert_eq!(
        chosen("mov.u32 %r1, 4;", "mov.u32 %r1, %r90;"),
        ["!bar.sync"]
    );
    assert_eq!(
        chosen("add.s32 %r1, %r90, 1;", "add.s32 %r1, %r90, 1;"),
        NONE
    );
    // What was there before stays.
    let kept = "mov.u32 %r1, %r90; ".to_owned() + &arms(BY_LANE, "", "mov.u32 %r1, 9;") + &asked;
    assert_eq!(refused(&kept), ["!bar.sync"]);
    // A register that is used for something else in between.
    let reused = format!(
        "mov.u32 %r1, %r90;\n{BARRIER}\nmov.u32 %r5, %r1;\nmov.u32 %r1, %r91;\nst.shared.b32 [%r1], %r5;\nmov.u32 %r1, %r5;\n"
    );
    assert_eq!(refused(&(reused + &asked)), NONE);
}

#[test]
fn assembly_in_braces_has_names_of_its_own() {
    let vote = |name: &str, of: &str| {
        format!(
            "{{ .reg .pred p, q; setp.ne.u32 p, {of}, 0; vote.sync.any.pred q, p, 0xffffffff; selp.u32 {name}, 1, 0, q; }}\n"
        )
    };
    let own = "{ .reg .pred p; setp.ne.u32 p, %r91, 0; selp.u32 %r3, 1, 0, p; }\n";
    let with = |text: &str, name: &str| {
        refused(&arms(
            &format!("{text}setp.eq.u32 %p1, {name}, 0;"),
            BARRIER,
            "",
        ))
    };
    let shared = "{ .reg .pred p; setp.ne.u32 p, %r90, 0; selp.u32 %r4, 1, 0, p; }\n";
    assert_eq!(with(&format!("{own}{shared}"), "%r4"), NONE);
    assert_eq!(with(&format!("{own}{shared}"), "%r3"), ["!bar.sync"]);
    assert_eq!(with(&format!("{own}{}", vote("%r4", "%r90")), "%r4"), NONE);
    assert_eq!(with(&vote("%r4", "%r91"), "%r4"), ["bar.sync"]);
    // Labels, too.
    let spin = "{ .reg .pred p; AGAIN: setp.ne.u32 p, %r90, 0; @p bra AGAIN; }\n";
    assert_eq!(refused(&format!("{spin}{spin}{BARRIER}")), NONE);
}
