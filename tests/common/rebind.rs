//! Requests at the addresses of one layer or of another, and what rebinding must do with them. Nothing runs.
#![allow(
    unused_macros,
    unused_imports,
    reason = "each test crate uses a part of this"
)]

use ferroattn::tensor::{Dtype, TensorView, TensorViewMut};

use super::parts::{Parts, parts};

/// Tensors one after the other, from an address of its own for each layer.
pub struct Layer(pub u64);

impl Layer {
    fn parts(&mut self, dtype: Dtype, shape: &[usize]) -> Parts {
        self.0 += 0x10_0000;
        Parts {
            address: self.0,
            ..parts(dtype, shape)
        }
    }
    pub fn view(&mut self, dtype: Dtype, shape: &[usize]) -> TensorView<'static> {
        self.parts(dtype, shape).view()
    }
    pub fn view_mut(&mut self, dtype: Dtype, shape: &[usize]) -> TensorViewMut<'static> {
        self.parts(dtype, shape).view_mut()
    }
}

pub const FIRST: u64 = 0x1000;
pub const SECOND: u64 = 0x7000_0000;

/// Whether a rebound request launches what a checked one does. `$request(layer)` makes them.
macro_rules! rebinds {
    ($request:expr, $plan:expr) => {
        use $crate::common::parts::launched;
        use $crate::common::rebind::{FIRST, Layer, SECOND};
        let first = $request(Layer(FIRST)).check().expect("a good request");
        let second = $request(Layer(SECOND)).check().expect("a good request");
        let plan = $plan(&first);
        let rebound = first.rebind($request(Layer(SECOND))).expect("alike");
        let expected = launched(|workspace, to| second.launch(&plan, workspace, to));
        let launches = launched(|workspace, to| rebound.launch(&plan, workspace, to));
        assert!(!launches.is_empty(), "nothing is launched");
        assert!(launches == expected, "{rebound:?} is not {second:?}");
        let old = launched(|workspace, to| first.launch(&plan, workspace, to));
        assert!(launches != old, "other addresses");
    };
}
pub(crate) use rebinds;

/// Whether a request with each change of `$table` is refused, with the message that stands beside it.
macro_rules! refuses {
    ($first:expr, $request:expr, $table:expr) => {
        for (change, message) in $table {
            let mut request = $request($crate::common::rebind::Layer(
                $crate::common::rebind::SECOND,
            ));
            change(&mut request);
            let error = $first.rebind(request).expect_err("it differs");
            assert_eq!(error.to_string(), message);
        }
    };
}
pub(crate) use refuses;
