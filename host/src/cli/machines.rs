//! The machines that are here.

use anyhow::Context;
use clap::ValueEnum;

use crate::emulator::Emulator;
use crate::runtime::{Cuda, DriverError, Route, Runtime};

/// Which machine to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Choice {
    /// The GPU if there is one, else the emulator
    Auto,
    /// The GPU
    Cuda,
    /// The emulator
    Emulator,
}

/// Which machines to use, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Choices {
    /// The GPU if there is one, and the emulator
    Auto,
    /// The GPU
    Cuda,
    /// The emulator
    Emulator,
}

/// Whose PTX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum PtxSet {
    /// rust-cuda's
    Nvvm,
    /// Stock rustc's
    Nvptx,
}

impl From<PtxSet> for Route {
    fn from(set: PtxSet) -> Self {
        match set {
            PtxSet::Nvvm => Self::Nvvm,
            PtxSet::Nvptx => Self::Nvptx,
        }
    }
}

/// Whose PTX, where both may be run side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum PtxSets {
    /// rust-cuda's
    Nvvm,
    /// Stock rustc's
    Nvptx,
    /// Both, one after the other
    Both,
}

impl PtxSets {
    /// The routes to open a GPU with, one after the other; `None` is whatever is the default.
    pub(super) fn routes(choice: Option<Self>) -> Vec<Option<Route>> {
        match choice {
            None => vec![None],
            Some(Self::Nvvm) => vec![Some(Route::Nvvm)],
            Some(Self::Nvptx) => vec![Some(Route::Nvptx)],
            Some(Self::Both) => vec![Some(Route::Nvvm), Some(Route::Nvptx)],
        }
    }
}

/// The machines chosen, at least one. Says on stderr what is missing.
pub(super) fn open(choice: Choices, route: Option<Route>) -> anyhow::Result<Vec<Box<dyn Runtime>>> {
    let mut machines: Vec<Box<dyn Runtime>> = Vec::new();
    match choice {
        Choices::Auto => machines.extend(cuda_if_there(route)?),
        Choices::Cuda => machines.push(Box::new(cuda(route)?)),
        Choices::Emulator => {}
    }
    if choice != Choices::Cuda {
        machines.push(Box::new(Emulator::new()));
    }
    Ok(machines)
}

/// The machine chosen. Says on stderr what is missing.
pub(super) fn open_one(choice: Choice, route: Option<Route>) -> anyhow::Result<Box<dyn Runtime>> {
    let emulator = || -> Box<dyn Runtime> { Box::new(Emulator::new()) };
    Ok(match choice {
        Choice::Auto => cuda_if_there(route)?.unwrap_or_else(emulator),
        Choice::Cuda => Box::new(cuda(route)?),
        Choice::Emulator => emulator(),
    })
}

/// The GPU, or nothing but a word on stderr.
fn cuda_if_there(route: Option<Route>) -> anyhow::Result<Option<Box<dyn Runtime>>> {
    match open_cuda(route) {
        Ok(cuda) => Ok(Some(Box::new(cuda))),
        // A wish that cannot be granted on any machine is no matter of this one.
        Err(error @ DriverError::Route { .. }) if route.is_some() => Err(error.into()),
        Err(error) => {
            eprintln!("no GPU: {error}");
            Ok(None)
        }
    }
}

/// The GPU, with the PTX of `route` or the default.
pub(super) fn cuda(route: Option<Route>) -> anyhow::Result<Cuda> {
    open_cuda(route).context("this needs a GPU")
}

fn open_cuda(route: Option<Route>) -> Result<Cuda, DriverError> {
    match route {
        Some(route) => Cuda::open_with(0, route),
        None => Cuda::open(0),
    }
}
