//! Buffers and the machines they belong to; and plans that run for other requests than their own, on the emulator.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]
#![allow(clippy::cast_possible_truncation, reason = "small test data")]

use ferroattn::emulator::Emulator;
use ferroattn::error::{Error, RequestError};
use ferroattn::ops::{
    BlockCaches, CheckMode, CopyBlocksRequest, DecodeOptions, DecodeRequest, UnifiedOptions,
    UnifiedRequest,
};
use ferroattn::plan::SplitPolicy;
use ferroattn::runtime::{Buffer, Launcher};
use ferroattn::tensor::Dtype;
use half::bf16;

fn ints<'m>(machine: &'m Emulator, name: &'static str, values: &[i32]) -> Buffer<'m> {
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    Buffer::new(machine, name, Dtype::I32, &[values.len()], &bytes).expect("small")
}

/// Values that look random.
fn values<'m>(machine: &'m Emulator, name: &'static str, shape: &[usize]) -> Buffer<'m> {
    let value = |i: usize| bf16::from_f32((i * 7919 % 1009) as f32 / 504.5 - 1.0);
    let bytes: Vec<u8> = (0..shape.iter().product())
        .flat_map(|i| value(i).to_le_bytes())
        .collect();
    Buffer::new(machine, name, Dtype::Bf16, shape, &bytes).expect("small")
}

/// What a request over a cache of 24 blocks of 16 tokens needs: `lens` tokens, 8 blocks of room for each sequence.
struct Step<'m> {
    query: Buffer<'m>,
    keys: Buffer<'m>,
    table: Buffer<'m>,
    starts: Buffer<'m>,
    lens: Buffer<'m>,
    out: Buffer<'m>,
}

const BLOCKS: usize = 8;

impl<'m> Step<'m> {
    fn new(machine: &'m Emulator, num_tokens: usize, lens: &[i32]) -> Self {
        let table: Vec<u8> = (0..lens.len() * BLOCKS)
            .flat_map(|i| (i as i32 * 5 % 24).to_le_bytes())
            .collect();
        let table_shape = [lens.len(), BLOCKS];
        let shares: Vec<i32> = (0..=lens.len())
            .map(|seq| (num_tokens * seq / lens.len()) as i32)
            .collect();
        Self {
            query: values(machine, "query", &[num_tokens, 4, 64]),
            keys: values(machine, "keys", &[24, 16, 2, 64]),
            table: Buffer::new(machine, "table", Dtype::I32, &table_shape, &table).expect("small"),
            starts: ints(machine, "starts", &shares),
            lens: ints(machine, "lens", lens),
            out: Buffer::uninit(machine, "out", Dtype::Bf16, &[num_tokens, 4, 64]).expect("small"),
        }
    }

    fn decode(&mut self) -> DecodeRequest<'_> {
        DecodeRequest {
            query: self.query.view(),
            key_cache: self.keys.view(),
            value_cache: self.keys.view(),
            block_table: self.table.view(),
            seq_lens: self.lens.view(),
            out: self.out.view_mut(),
            lse: None,
            softmax_scale: 0.125,
            scales: None,
            options: DecodeOptions::default()
                .split_policy(SplitPolicy::Fixed(64))
                .check(CheckMode::Device),
        }
    }

    fn unified(&mut self) -> UnifiedRequest<'_> {
        let mut options = UnifiedOptions::default();
        options.split_policy = SplitPolicy::Fixed(64);
        options.check = CheckMode::Device;
        UnifiedRequest {
            query: self.query.view(),
            key_cache: self.keys.view(),
            value_cache: self.keys.view(),
            block_table: self.table.view(),
            query_start_loc: self.starts.view(),
            seq_lens: self.lens.view(),
            out: self.out.view_mut(),
            lse: None,
            softmax_scale: 0.125,
            scales: None,
            options,
        }
    }
}

/// The workspace of a plan for a larger request is full of other things.
fn workspace(machine: &Emulator, bytes: usize) -> Buffer<'_> {
    Buffer::new(
        machine,
        "workspace",
        Dtype::U8,
        &[bytes],
        &vec![0xff; bytes],
    )
    .expect("small")
}

/// The kernels run on grids of the request that is launched: a thread block more would be out of its tensors' bounds.
macro_rules! runs_as_with_its_own {
    ($machine:expr, $large:expr, $small:expr, $request:ident) => {
        let mut large = $large;
        let plan = large
            .$request()
            .check()
            .unwrap()
            .plan(&$machine.device())
            .unwrap();
        let mut bits = Vec::new();
        for is_own in [true, false] {
            let mut small = $small;
            let checked = small.$request().check().unwrap();
            let own = checked.plan(&$machine.device()).unwrap();
            let plan = if is_own { &own } else { &plan };
            assert!(plan.splits().num_kv_splits > 1, "to be merged");
            let mut workspace = workspace(&$machine, plan.workspace_bytes());
            checked
                .launch(plan, &mut workspace.view_mut(), &$machine)
                .unwrap();
            bits.push(small.out.read().unwrap());
        }
        assert!(bits[0] == bits[1] && bits[0].iter().any(|&byte| byte != 0xff));
    };
}

#[test]
fn a_plan_runs_for_fewer_sequences_and_tokens() {
    let machine = Emulator::new();
    let (large, small) = ([100, 128, 7, 64], [99, 128]);
    runs_as_with_its_own!(
        machine,
        Step::new(&machine, 4, &large),
        Step::new(&machine, 2, &small),
        decode
    );
    runs_as_with_its_own!(
        machine,
        Step::new(&machine, 60, &large),
        Step::new(&machine, 9, &small),
        unified
    );
}

#[test]
fn memory_of_another_machine_is_refused() {
    let (here, there) = (Emulator::new(), Emulator::new());
    let mut step = Step::new(&here, 2, &[5, 6]);
    let plan = step.decode().check().unwrap().plan(&here.device()).unwrap();
    let refused = |result: ferroattn::Result<()>, name: &str| match result {
        Err(Error::Request(RequestError::Machine { tensor })) => assert_eq!(tensor, name),
        other => panic!("{other:?}"),
    };
    let mut spaces = [&here, &there].map(|machine| workspace(machine, plan.workspace_bytes()));
    let [ours, theirs] = spaces.each_mut().map(Buffer::view_mut);
    let [mut ours, mut theirs] = [ours, theirs];
    {
        let checked = step.decode().check().unwrap();
        refused(checked.launch(&plan, &mut theirs, &there), "query");
        refused(checked.launch(&plan, &mut theirs, &here), "workspace");
        checked.launch(&plan, &mut ours, &here).unwrap();
    }
    // One tensor among others; and one that only a table names.
    let lens = ints(&there, "lens", &[5, 6]);
    let mut request = step.decode();
    request.seq_lens = lens.view();
    refused(
        request.check().unwrap().launch(&plan, &mut ours, &here),
        "seq_lens",
    );
    let unified = step.unified().check().unwrap();
    let plan = unified.plan(&here.device()).unwrap();
    refused(unified.launch(&plan, &mut theirs, &there), "query");
    let mut cache = values(&here, "cache", &[4, 16]);
    let pairs = Buffer::new(&there, "pairs", Dtype::I64, &[1, 2], &[0; 16]).unwrap();
    let copy = CopyBlocksRequest {
        caches: BlockCaches::Within(cache.view_mut()),
        pairs: pairs.view(),
        check: CheckMode::Off,
    };
    let copy = copy.check().unwrap();
    refused(copy.launch(&copy.plan(), &mut ours, &here), "pairs");
}

#[test]
fn strides_that_let_elements_overlap_are_refused() {
    let machine = Emulator::new();
    let make = |shape: &[usize], strides: &[i64], bytes: usize| {
        Buffer::with_strides(
            &machine,
            "buffer",
            Dtype::U8,
            shape,
            strides,
            &vec![7; bytes],
        )
    };
    for (shape, strides, bytes) in [
        (&[3, 4][..], &[0, 1][..], 4),
        (&[3, 4], &[3, 1], 10),
        (&[4, 3], &[1, 3], 10),
        (&[2, 2], &[1, 1], 3),
        (&[2, 2], &[2], 3),
    ] {
        let error = make(shape, strides, bytes)
            .err()
            .expect("elements overlap")
            .to_string();
        assert!(
            error.contains("`buffer`") && error.contains("no element twice"),
            "{error}"
        );
    }
    // In any order, with gaps, and with any stride where there is one index or none.
    for (shape, strides, bytes) in [
        (&[3, 4][..], &[4, 1][..], 12),
        (&[4, 3], &[1, 5], 14),
        (&[1, 3], &[0, 1], 3),
        (&[3, 0], &[0, 0], 0),
        (&[], &[], 1),
    ] {
        let mut buffer = make(shape, strides, bytes).expect("distinct elements");
        assert_eq!(buffer.view_mut().view().shape(), shape);
        assert_eq!(buffer.read().unwrap(), vec![7; bytes]);
    }
}

#[test]
fn a_buffer_holds_what_it_says() {
    let machine = Emulator::new();
    let mut buffer = Buffer::new(&machine, "buffer", Dtype::U8, &[4], &[1, 2, 3, 4]).unwrap();
    for wrong in [&[9; 3][..], &[9; 5]] {
        let error = buffer.write(wrong).expect_err("another length").to_string();
        assert!(
            error.contains(&format!("4 bytes, but it is {} bytes", wrong.len())),
            "{error}"
        );
    }
    assert_eq!(buffer.read().unwrap(), [1, 2, 3, 4]);
    buffer.write(&[5, 6, 7, 8]).unwrap();
    assert_eq!(buffer.read().unwrap(), [5, 6, 7, 8]);
    let mut empty = Buffer::uninit(&machine, "empty", Dtype::Bf16, &[3, 0]).unwrap();
    assert!(empty.view().address() != 0 && empty.read().unwrap().is_empty());
    empty.write(&[]).unwrap();
    for result in [
        Buffer::uninit(&machine, "buffer", Dtype::U8, &[1; 6]),
        Buffer::new(&machine, "buffer", Dtype::U8, &[1; 6], &[0]),
    ] {
        let error = result.err().expect("too many dimensions").to_string();
        assert!(error.contains("at most 5 dimensions"), "{error}");
    }
}
