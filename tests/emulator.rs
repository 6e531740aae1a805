//! The emulator: correct kernels must pass, matrix operations agree with plain products, numbers with their contract.
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "the emulator checks what the kernels below promise; breaking the promise is the point"
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small test data"
)]
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod tiny_kernels;

use ferroattn::Error;
use ferroattn::emulator::{Emulator, FaultKind, Lane};
use ferroattn::runtime::DeviceMemory;
use gpu_kernels::gpu::{Line, Matrices, Memory, Numbers, Threads};
use half::{bf16, f16};
use tiny_kernels::{passes, two_tensors};

#[test]
fn lanes_may_exchange_values_and_take_turns() {
    passes([3, 2, 1], 96, 1024, |lane, &[input, _]| unsafe {
        let sum = (0..5).fold(lane.lane(), |sum, i| sum + lane.shfl_xor(sum, 1 << i));
        assert_eq!(sum, 31 * 32 / 2);
        assert_eq!(lane.shfl(lane.lane(), 7), 7);
        assert_eq!(lane.shfl(lane.lane(), 31 - lane.lane()), 31 - lane.lane());
        assert!(lane.any(lane.lane() == 13) && !lane.any(false));
        let word = |thread: u32| lane.shared_base() + 4 * thread;
        for round in 0..10 {
            lane.st_shared_b32(word(lane.thread_idx()), round);
            lane.sync_warp();
            assert_eq!(lane.ld_shared_b32(word(lane.thread_idx() ^ 1)), round);
            lane.sync_cta();
            assert_eq!(
                lane.ld_shared_b32(word((lane.thread_idx() + 40) % 96)),
                round
            );
            lane.sync_cta();
        }
        assert_eq!(
            lane.ld_global_b32(input),
            0x0302_0100,
            "all thread blocks may read"
        );
    });
}

#[test]
fn lanes_may_write_the_bytes_of_one_word() {
    passes([1; 3], 64, 0, |lane, &[_, out]| unsafe {
        let i = u64::from(lane.thread_idx());
        lane.st_global_b8(out + i, i as u8);
        lane.st_global_b16(out + 64 + 2 * i, i as u16);
        lane.sync_cta();
        let word = |i: u64| (0..4).map(|k| (4 * i + k) << (8 * k)).sum::<u64>() as u32;
        assert_eq!(lane.ld_global_b32(out + (i & !3)), word(i / 4));
        assert_eq!(lane.ld_global_b16(out + 64 + 2 * (63 - i)), (63 - i) as u16);
    });
    // The same by thread blocks that run in parallel.
    passes([64, 1, 1], 1, 0, |lane, &[_, out]| unsafe {
        let i = u64::from(lane.cta_idx_x());
        lane.st_global_b8(out + i, 3);
        assert_eq!(lane.ld_global_b8(out + i), 3);
        lane.st_global_b64(out + 64 + 8 * i, u64::MAX - i);
        assert_eq!(lane.ld_global_b64(out + 64 + 8 * i), u64::MAX - i);
    });
}

#[test]
fn copies_may_be_double_buffered() {
    passes([2, 1, 1], 64, 2048, |lane, &[input, _]| unsafe {
        let buffer = |step: u32| lane.shared_base() + step % 2 * 1024;
        let offset = 16 * lane.thread_idx();
        let copy = |step: u32| {
            let source = input + u64::from(1024 * step + offset);
            lane.cp_async_b128(buffer(step) + offset, source, step < 4, Line::ONCE);
            lane.cp_async_commit();
        };
        copy(0);
        for step in 0..5 {
            copy(step + 1);
            lane.cp_async_wait::<1>();
            lane.sync_cta();
            let other = (offset + 16 * 33) % 1024;
            let [word, ..] = lane.ld_shared_b128(buffer(step) + other);
            let first = (1024 * step + other) % 251;
            assert_eq!(word & 0xff, if step < 4 { first } else { 0 });
            lane.sync_cta();
        }
    });
}

#[test]
fn a_copy_that_is_not_valid_reads_nothing() {
    passes([1; 3], 1, 16, |lane, _| unsafe {
        lane.cp_async_b128(lane.shared_base(), 0, false, Line::ONCE);
        lane.cp_async_commit();
        lane.cp_async_wait::<0>();
        assert_eq!(lane.ld_shared_b128(lane.shared_base()), [0; 4]);
    });
}

#[test]
fn one_thread_block_claims_a_word() {
    let emulator = Emulator::with_seed(3);
    let word = emulator.allocate("claim", 4).expect("small");
    unsafe { emulator.copy_in(word, &[0; 4]) }.expect("in bounds");
    emulator
        .launch_fn("claim", [100, 1, 1], 64, 0, |lane| unsafe {
            if lane.thread_idx() == 40 {
                lane.atomic_cas_global_b32(word, 0, lane.cta_idx_x() + 1);
            }
        })
        .expect("atomics do not race");
    let mut claimed = [0; 4];
    unsafe { emulator.copy_out(word, &mut claimed) }.expect("in bounds");
    assert!((1..=100).contains(&u32::from_le_bytes(claimed)));
}

#[test]
fn a_lane_may_wait_for_another_warp_by_an_atomic() {
    passes([1; 3], 64, 0, |lane, &[input, _]| unsafe {
        match lane.thread_idx() {
            0 => while lane.atomic_cas_global_b32(input, 1, 2) != 1 {},
            32 => _ = lane.atomic_cas_global_b32(input, 0x0302_0100, 1),
            _ => {}
        }
        lane.sync_cta();
        assert_eq!(lane.ld_global_b32(input), 2);
    });
}

#[test]
fn a_launch_sees_what_the_one_before_wrote() {
    let emulator = Emulator::with_seed(1);
    let [_, out] = two_tensors(&emulator);
    for round in 0..3 {
        let place = |round: u32, cta: u32, lane: Lane<'_>| {
            out + 4 * u64::from(round % 2 * 128 + cta * 64 + lane.thread_idx())
        };
        emulator
            .launch_fn("relay", [2, 1, 1], 64, 0, |lane| unsafe {
                let cta = lane.cta_idx_x();
                if round > 0 {
                    let others = lane.ld_global_b32(place(round - 1, 1 - cta, lane));
                    assert_eq!(others, round - 1);
                }
                lane.st_global_b32(place(round, cta, lane), round);
            })
            .unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn whole_warps_may_leave_early() {
    passes([1; 3], 64, 0, |lane, _| {
        if lane.warp() == 0 {
            assert_eq!(unsafe { lane.shfl(5, 0) }, 5);
        }
    });
}

#[test]
fn empty_tensors_have_an_address() {
    let emulator = Emulator::new();
    let empty = emulator.allocate("empty", 0).expect("nothing");
    let other = emulator.allocate("other", 0).expect("nothing");
    assert!(empty != other && empty.is_multiple_of(256));
    unsafe {
        emulator.copy_in(empty, &[]).expect("nothing");
        emulator.copy_out(empty, &mut []).expect("nothing");
    }
    let result = emulator.launch_fn("reader", [1; 3], 1, 0, |lane| {
        unsafe { lane.ld_global_b8(empty) };
    });
    assert!(result.unwrap_err().to_string().contains("`empty` byte 0"));
}

#[test]
fn a_tensor_of_many_gigabytes_costs_what_is_written() {
    let emulator = Emulator::new();
    let bytes = 40 << 30;
    let cache = emulator.allocate("cache", bytes).expect("virtual");
    let far = cache + (1 << 33) + 12_345 * 16;
    unsafe { emulator.copy_in(far, &[7; 16]) }.expect("in bounds");
    emulator
        .launch_fn("far", [1; 3], 1, 0, |lane| unsafe {
            let row = lane.ld_global_b128(far);
            lane.st_global_b128(cache + bytes as u64 - 16, row);
        })
        .expect("in bounds");
    let mut row = [0; 17];
    unsafe { emulator.copy_out(cache + bytes as u64 - 17, &mut row) }.expect("in bounds");
    assert_eq!(
        (row[0], &row[1..]),
        (0xff, &[7; 16][..]),
        "poison before it"
    );

    let result = emulator.launch_fn("cut", [1; 3], 1, 0, |lane| unsafe {
        lane.ld_global_b128(cache + u64::from((far - cache) as u32)); // an offset cut to 32 bits
    });
    let Err(Error::Fault(fault)) = result else {
        panic!("expected a fault, got {result:?}");
    };
    assert_eq!(fault.kind, FaultKind::UninitialisedRead);
}

// ---- matrices ------------------------------------------------------------------------------------

/// Element `(row, column)` of a test matrix: small, so that sums are exact, and without symmetry.
fn element(row: u32, column: u32) -> f32 {
    ((row * 7 + column * 3) % 13) as f32 - 6.0
}

#[test]
fn mma_multiplies_in_the_fragment_layout_of_the_ptx_isa() {
    passes([1; 3], 64, 0, |lane, _| unsafe {
        let (g, t) = (lane.lane() / 4, lane.lane() % 4);
        let b_at = |row: u32, column: u32| element(column + 5, row * 2);
        let c_at = |row: u32, column: u32| (row * 8 + column) as f32;
        // The tables of the PTX ISA for m16n8k16, written out.
        let a_places = [
            (g, 2 * t),
            (g + 8, 2 * t),
            (g, 2 * t + 8),
            (g + 8, 2 * t + 8),
        ];
        let b_places = [(2 * t, g), (2 * t + 8, g)];
        let c_places = [
            (g, 2 * t),
            (g, 2 * t + 1),
            (g + 8, 2 * t),
            (g + 8, 2 * t + 1),
        ];
        let acc = c_places.map(|(row, column)| c_at(row, column));
        let expected = c_places.map(|(row, column)| {
            (0..16).fold(c_at(row, column), |sum, k| {
                sum + element(row, k) * b_at(k, column)
            })
        });

        let a = a_places.map(|(row, k)| lane.pack_bf16(element(row, k), element(row, k + 1)));
        let b = b_places.map(|(k, column)| lane.pack_bf16(b_at(k, column), b_at(k + 1, column)));
        assert_eq!(lane.mma_bf16(acc, a, b), expected);

        let a = a_places.map(|(row, k)| lane.pack_f16(element(row, k), element(row, k + 1)));
        let b = b_places.map(|(k, column)| lane.pack_f16(b_at(k, column), b_at(k + 1, column)));
        assert_eq!(lane.mma_f16(acc, a, b), expected);
    });
}

#[test]
fn ldmatrix_hands_out_rows_and_its_transpose_columns() {
    passes([1; 3], 32, 512, |lane, _| unsafe {
        // Matrix `i`, row `r`, column `c` holds the number `64 i + 8 r + c`; rows lie backwards.
        let row = lane.lane();
        let address = lane.shared_base() + 16 * (31 - row);
        let value = |matrix: u32, row: u32, column: u32| 64 * matrix + 8 * row + column;
        let words = [0, 2, 4, 6].map(|c| value(0, row, c) | value(0, row, c + 1) << 16);
        lane.st_shared_b128(address, words);
        lane.sync_warp();
        let (g, t) = (lane.lane() / 4, lane.lane() % 4);
        let plain = [0, 1, 2, 3].map(|i| value(i, g, 2 * t) | value(i, g, 2 * t + 1) << 16);
        assert_eq!(lane.ldmatrix_x4(address), plain);
        let transposed = [0, 1, 2, 3].map(|i| value(i, 2 * t, g) | value(i, 2 * t + 1, g) << 16);
        assert_eq!(lane.ldmatrix_x4_trans(address), transposed);
        assert_eq!(lane.movmatrix_trans(plain[2]), transposed[2]);
    });
}

// ---- numbers -------------------------------------------------------------------------------------

#[test]
fn numbers_follow_the_contract() {
    passes([1; 3], 1, 0, |lane, _| {
        assert_eq!(
            lane.fma(1.0 + f32::EPSILON, 1.0 - f32::EPSILON, -1.0),
            -f32::EPSILON.powi(2)
        );
        assert_eq!(lane.max(f32::NAN, -3.0), -3.0);
        assert_eq!(lane.exp2(f32::NEG_INFINITY), 0.0);
        assert_eq!(lane.exp2(-127.0).to_bits(), 0, "subnormal results are zero");
        assert_eq!(lane.exp2(-126.0), f32::MIN_POSITIVE);
        assert_eq!(lane.log2(8.0), 3.0);
        assert_eq!(lane.recip(4.0), 0.25);
        // Ties go to even: 1 + 2^-8 down, 1 + 3 * 2^-8 up.
        let ties = lane.pack_bf16(1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0);
        assert_eq!(ties, 0x3f82_3f80);
        assert!(bf16::from_bits(lane.pack_bf16(f32::NAN, 0.0) as u16).is_nan());
        assert_eq!(
            lane.pack_f16(65519.0, 65520.0),
            0x7c00_7bff,
            "largest, and infinity"
        );
        assert_eq!(
            lane.widen_f16(f16::from_f32(-0.1).to_bits()),
            f16::from_f32(-0.1).to_f32()
        );
    });
}
