//! Decode over caches of bytes: what the bytes and the scales mean, to the bit where that is possible.

use ferroattn::emulator::Emulator;
use ferroattn::error::{CheckError, Error};
use ferroattn::ops::{
    CHECK_BYTES, CheckMode, DecodeOptions, DecodeRequest, KvScales, check_result,
};
use ferroattn::reference::fp8_value;
use ferroattn::runtime::{Buffer, Cuda, Runtime};
use ferroattn::tensor::Dtype;
use half::f16;

/// One sequence, one head, blocks of 8 tokens; f16 in and out.
struct Case {
    head_size: usize,
    query_dtype: Dtype,
    cache_dtype: Dtype,
    query: Vec<u8>,
    /// Of each token.
    keys: Vec<Vec<u8>>,
    values: Vec<Vec<u8>>,
    q_scale: Option<f32>,
    k_scale: Vec<f32>,
    v_scale: Vec<f32>,
    check: CheckMode,
}

impl Case {
    /// Keys of zero, so that every token weighs the same.
    fn of_values(cache_dtype: Dtype, values: Vec<Vec<u8>>) -> Self {
        let head_size = values[0].len();
        Self {
            head_size,
            query_dtype: Dtype::F16,
            cache_dtype,
            query: f16::ONE.to_le_bytes().repeat(head_size),
            keys: vec![vec![0; head_size]; values.len()],
            values,
            q_scale: None,
            k_scale: vec![1.0],
            v_scale: vec![1.0],
            check: CheckMode::Off,
        }
    }

    /// The output, and the record of the check.
    fn run(&self, machine: &dyn Runtime) -> ferroattn::Result<(Vec<f32>, Vec<u8>)> {
        let (size, tokens) = (self.head_size, self.keys.len());
        let blocks = tokens.div_ceil(8);
        let shape = [blocks, 8, 1, size];
        let cache = |name, rows: &[Vec<u8>]| {
            let mut bytes = vec![0xff; blocks * 8 * size];
            bytes[..tokens * size].copy_from_slice(&rows.concat());
            Buffer::new(machine, name, self.cache_dtype, &shape, &bytes)
        };
        let scale = |name, values: &[f32]| {
            let bytes: Vec<u8> = values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            match values.len() {
                1 => Buffer::new(machine, name, Dtype::F32, &[1], &bytes),
                _ => Buffer::new(machine, name, Dtype::F32, &[blocks, 8, 1], &bytes),
            }
        };
        let table: Vec<u8> = (0..i32::try_from(blocks).expect("few blocks"))
            .flat_map(i32::to_le_bytes)
            .collect();
        let len = i32::try_from(tokens).expect("few tokens").to_le_bytes();
        let query = Buffer::new(
            machine,
            "query",
            self.query_dtype,
            &[1, 1, size],
            &self.query,
        )?;
        let (keys, values) = (
            cache("key_cache", &self.keys)?,
            cache("value_cache", &self.values)?,
        );
        let table = Buffer::new(machine, "block_table", Dtype::I32, &[1, blocks], &table)?;
        let lens = Buffer::new(machine, "seq_lens", Dtype::I32, &[1], &len)?;
        let (k_scale, v_scale) = (
            scale("k_scale", &self.k_scale)?,
            scale("v_scale", &self.v_scale)?,
        );
        let q_scale = self
            .q_scale
            .map(|value| scale("q_scale", &[value]))
            .transpose()?;
        let mut out = Buffer::new(
            machine,
            "out",
            Dtype::F16,
            &[1, 1, size],
            &vec![0xff; 2 * size],
        )?;
        let decode = DecodeRequest {
            query: query.view(),
            key_cache: keys.view(),
            value_cache: values.view(),
            block_table: table.view(),
            seq_lens: lens.view(),
            out: out.view_mut(),
            lse: None,
            softmax_scale: 0.125,
            scales: Some(KvScales {
                q_scale: q_scale.as_ref().map(Buffer::view),
                k_scale: k_scale.view(),
                v_scale: v_scale.view(),
            }),
            options: DecodeOptions::default().check(self.check),
        }
        .check()?;
        let plan = decode.plan(&machine.device())?;
        let bytes = vec![0; plan.workspace_bytes().max(CHECK_BYTES)];
        let mut workspace = Buffer::new(machine, "workspace", Dtype::U8, &[bytes.len()], &bytes)?;
        decode.launch(&plan, &mut workspace.view_mut(), machine)?;
        machine.synchronize()?;
        let halves = out.read()?;
        let out = halves
            .chunks(2)
            .map(|half| f16::from_le_bytes([half[0], half[1]]).to_f32());
        Ok((out.collect(), workspace.read()?))
    }
}

/// The emulator, and the GPU if there is one.
fn on_each_machine(test: impl Fn(&dyn Runtime)) {
    test(&Emulator::new());
    match Cuda::open(0) {
        Ok(cuda) => test(&cuda),
        Err(missing) => eprintln!("SKIPPED on a GPU: {missing}"),
    }
}

#[test]
fn every_byte_is_widened_exactly() {
    let bytes: Vec<u8> = (0..=255).collect();
    on_each_machine(|machine| {
        for dtype in [Dtype::F8E4m3, Dtype::F8E5m2, Dtype::I8] {
            let mut case = Case::of_values(dtype, vec![bytes.clone()]);
            if dtype == Dtype::I8 {
                (case.k_scale, case.v_scale) = (vec![1.0; 8], vec![1.0; 8]);
            }
            let (out, _) = case.run(machine).unwrap();
            for (byte, got) in bytes.iter().zip(out) {
                let expected = match dtype {
                    Dtype::I8 => f64::from(byte.cast_signed()),
                    _ => fp8_value(dtype, *byte),
                };
                let same = f64::from(got) == expected || (got.is_nan() && expected.is_nan());
                // An infinite value times a probability of 1 in a sum with nothing else.
                assert!(
                    same,
                    "{dtype} {byte:#04x} is {expected}, came out as {got} on {}",
                    machine.name()
                );
            }
        }
    });
}

#[test]
fn each_scale_acts_as_its_formula_says() {
    on_each_machine(|machine| {
        // Two tokens: 1.0 (0x38) along the first dim and nothing; values 1 and 3 (0x44).
        let key = |first: u8| [vec![first], vec![0; 63]].concat();
        let case = |q_scale: f32, k_scale: f32, v_scale: f32| Case {
            query_dtype: Dtype::F8E4m3,
            query: key(0x38),
            keys: vec![key(0x38), key(0)],
            q_scale: Some(q_scale),
            k_scale: vec![k_scale],
            v_scale: vec![v_scale],
            ..Case::of_values(Dtype::F8E4m3, vec![vec![0x38; 64], vec![0x44; 64]])
        };
        for (q, k, v) in [
            (1.0, 1.0, 1.0),
            (0.75, 1.0, 1.0),
            (1.0, 0.5, 1.0),
            (1.0, 1.0, 0.25),
            (6.0, 5.5, 0.3),
        ] {
            let (out, _) = case(q, k, v).run(machine).unwrap();
            let first = (0.125 * q * k).exp();
            let expected = v * (first + 3.0) / (first + 1.0);
            assert!(
                (out[0] - expected).abs() < 1e-3 * expected,
                "{q} {k} {v}: {} not {expected}",
                out[0]
            );
        }
    });
}

#[test]
fn small_probabilities_survive() {
    on_each_machine(|machine| {
        // One token's score is 8 above that of 39 others, whose values alone are not zero.
        let key = |first: u8| [vec![first], vec![0; 63]].concat();
        let mut case = Case::of_values(Dtype::F8E4m3, vec![vec![0x38; 64]; 40]);
        case.values[0] = vec![0; 64];
        case.keys = vec![key(0); 40];
        case.keys[0] = key(0x68); // 64
        let (out, _) = case.run(machine).unwrap();
        let others = 39.0 * (-8.0f32).exp();
        let expected = others / (1.0 + others);
        assert!(
            (out[0] - expected).abs() < 1e-3 * expected,
            "{} not {expected}",
            out[0]
        );
    });
}

#[test]
fn scales_per_token_weigh_each_token() {
    on_each_machine(|machine| {
        for (dtype, one) in [(Dtype::F8E4m3, 0x38), (Dtype::I8, 1)] {
            let mut case = Case::of_values(dtype, vec![vec![one; 64]; 8]);
            case.k_scale = vec![1.0; 8];
            // From far below an f16's range to far above it.
            case.v_scale = (0..8).map(|token| 1e-9 * 40f32.powi(token)).collect();
            let (out, _) = case.run(machine).unwrap();
            let expected = case.v_scale.iter().sum::<f32>() / 8.0;
            assert!(
                (out[0] - expected).abs() < 2e-3 * expected,
                "{dtype}: {} not {expected}",
                out[0]
            );
        }
    });
}

#[test]
fn a_check_finds_scales_that_are_no_scales() {
    on_each_machine(|machine| {
        for (bad, name) in [
            (0.0, "q_scale"),
            (-1.0, "k_scale"),
            (f32::NAN, "v_scale"),
            (f32::INFINITY, "k_scale"),
        ] {
            let mut case = Case::of_values(Dtype::F8E4m3, vec![vec![0x38; 64]]);
            case.query_dtype = Dtype::F8E4m3;
            case.query = vec![0x38; 64];
            case.q_scale = Some(1.0);
            case.check = CheckMode::Device;
            match name {
                "q_scale" => case.q_scale = Some(bad),
                "k_scale" => case.k_scale = vec![bad],
                _ => case.v_scale = vec![bad],
            }
            let (out, record) = case.run(machine).unwrap();
            let Err(CheckError::Scale {
                name: found,
                index: 0,
                value,
            }) = check_result(&record)
            else {
                panic!("{bad} went unnoticed: {:?}", check_result(&record));
            };
            assert_eq!((found, value.to_bits()), (name, bad.to_bits()));
            assert!(
                out.iter().all(|value| value.is_nan()),
                "something was written"
            );
        }
    });
}

#[test]
fn scales_are_mandatory_and_must_fit() {
    let machine = Emulator::new();
    let buffer =
        |name, dtype, shape: &[usize]| Buffer::uninit(&machine, name, dtype, shape).unwrap();
    let refused = |kv: Dtype, query: Dtype, scales: Option<(Option<usize>, &[usize], &[usize])>| {
        let q = buffer("query", query, &[1, 4, 64]);
        let (keys, values) = (
            buffer("k", kv, &[2, 16, 2, 64]),
            buffer("v", kv, &[2, 16, 2, 64]),
        );
        let (table, lens) = (
            buffer("t", Dtype::I32, &[1, 2]),
            buffer("l", Dtype::I32, &[1]),
        );
        let mut out = buffer("out", Dtype::Bf16, &[1, 4, 64]);
        let held = scales.map(|(q_scale, k_scale, v_scale)| {
            let q_scale = q_scale.map(|len| buffer("q_scale", Dtype::F32, &[len]));
            (
                q_scale,
                buffer("k_scale", Dtype::F32, k_scale),
                buffer("v_scale", Dtype::F32, v_scale),
            )
        });
        let result = DecodeRequest {
            query: q.view(),
            key_cache: keys.view(),
            value_cache: values.view(),
            block_table: table.view(),
            seq_lens: lens.view(),
            out: out.view_mut(),
            lse: None,
            softmax_scale: 0.125,
            scales: held.as_ref().map(|(q_scale, k_scale, v_scale)| KvScales {
                q_scale: q_scale.as_ref().map(Buffer::view),
                k_scale: k_scale.view(),
                v_scale: v_scale.view(),
            }),
            options: DecodeOptions::default(),
        }
        .check();
        match result {
            Ok(_) => String::new(),
            Err(Error::Request(wrong)) => wrong.to_string(),
            Err(other) => panic!("{other}"),
        }
    };
    let (fp8, e5m2, i8, bf16) = (Dtype::F8E4m3, Dtype::F8E5m2, Dtype::I8, Dtype::Bf16);
    let (one, heads, tokens): (&[usize], &[usize], &[usize]) = (&[1], &[2], &[2, 16, 2]);
    assert_eq!(
        refused(fp8, bf16, None),
        "`scales` must be given for a cache of bytes, but it is missing"
    );
    assert_eq!(
        refused(bf16, bf16, Some((None, one, one))),
        "`scales` must be absent for a cache of 16-bit values, but it is given"
    );
    assert_eq!(
        refused(fp8, fp8, Some((None, one, one))),
        "`q_scale` must be given for an fp8_e4m3 query, but it is missing"
    );
    assert_eq!(
        refused(fp8, bf16, Some((Some(1), one, one))),
        "`q_scale` must be absent for a query of 16-bit values, but it is given"
    );
    assert!(
        refused(fp8, bf16, Some((None, &[3], one)))
            .contains("`k_scale` must be [1], [num_kv_heads] = [2]")
    );
    assert!(refused(fp8, bf16, Some((None, tokens, heads))).contains("`v_scale` must be"));
    assert!(
        refused(i8, bf16, Some((None, one, one)))
            .contains("`k_scale` must be [num_blocks, block_size")
    );
    assert!(refused(e5m2, bf16, Some((None, tokens, tokens))).contains("`k_scale` must be [1] or"));
    for scales in [
        (None, one, one),
        (None, heads, heads),
        (None, heads, one),
        (None, tokens, tokens),
    ] {
        assert_eq!(refused(fp8, bf16, Some(scales)), "");
    }
    assert_eq!(refused(i8, bf16, Some((None, tokens, tokens))), "");
    assert_eq!(refused(e5m2, fp8, Some((Some(1), heads, heads))), "");
}
