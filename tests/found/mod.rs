//! Running a request that is checked on the device, and what the check finds.

use ferroattn::error::CheckError;
use ferroattn::reference::HostTensor;

use crate::tensors::*;

/// Launches with room for the plan, and says what the record says.
macro_rules! found {
    ($machine:expr, $request:expr) => {{
        let checked = $request.check().expect("a good request");
        let plan = checked.plan();
        let mut workspace = $machine.workspace(plan.workspace_bytes());
        checked
            .launch(&plan, &mut workspace, &$machine.emulator)
            .unwrap_or_else(|error| panic!("{error}"));
        ferroattn::ops::check_result(&$machine.read_workspace(&workspace))
    }};
}

pub(crate) use found;

/// What was found is `expected` in words, and the tensors are as they were.
#[track_caller]
pub(crate) fn assert_refused(
    machine: &Machine,
    found: Result<(), CheckError>,
    expected: &str,
    outputs: &[&HostTensor],
) {
    assert_eq!(found.expect_err(expected).to_string(), expected);
    for output in outputs {
        let name = output.storage.name;
        assert_same_bytes(&machine.read(output), &output.storage.bytes, name);
    }
}
