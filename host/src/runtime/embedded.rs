//! The PTX inside this library: which sets there are, for which architectures, and the text of one kernel.
//!
//! A set is everything that one compiler made of the kernels ([`Route`]), and lies in a crate of its own. There are two,
//! so that each can be checked against the other; the first that was built in is used unless somebody asks for another.

use std::fmt;
use std::io::Read;
use std::str::FromStr;

use gpu_kernels::entry::Entry;
pub use gpu_kernels::entry::{Arch, ArchSet};
use lzma_rust2::XzReader;

use super::driver::DriverError;

#[cfg(not(any(feature = "ptx", feature = "ptx-nvptx", feature = "without-ptx")))]
compile_error!(
    "ferroattn without PTX runs nothing on a GPU: enable the feature `ptx` (rust-cuda's kernels, the default) or \
     `ptx-nvptx` (stock rustc's), or say `without-ptx` if the emulator is all you want"
);

/// The environment variable that chooses a set, by [`Route::name`].
pub const ROUTE_VARIABLE: &str = "FERROATTN_PTX";

/// Which compiler wrote the PTX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// rust-cuda: rustc_codegen_nvvm and libNVVM
    Nvvm,
    /// Stock rustc's own back end
    Nvptx,
}

/// All kernels, as one compiler compiled them.
#[derive(Clone, Copy, Debug)]
pub struct PtxSet {
    /// Which compiler wrote the PTX.
    pub route: Route,
    /// The compiler's version line.
    pub compiler: &'static str,
    /// PTX ISA version.
    pub ptx_version: &'static str,
    /// SHA-256 of the kernels' source.
    pub source_sha256: &'static str,
    /// The names of the architectures that were compiled for.
    archs: &'static [&'static str],
    /// By name, in alphabetical order: modules of all architectures one after the other, compressed.
    kernels: &'static [(&'static str, &'static [u8])],
}

/// The set in a crate.
#[cfg(any(feature = "ptx", feature = "ptx-nvptx"))]
macro_rules! set {
    ($route:ident, $from:ident) => {
        PtxSet {
            route: Route::$route,
            compiler: $from::COMPILER,
            ptx_version: $from::PTX_VERSION,
            source_sha256: $from::SOURCE_SHA256,
            archs: $from::ARCHS,
            kernels: $from::KERNELS,
        }
    };
}

/// What this library carries, the default first. Empty if it was built without PTX.
pub static SETS: &[PtxSet] = &[
    #[cfg(feature = "ptx")]
    set!(Nvvm, ferroattn_ptx),
    #[cfg(feature = "ptx-nvptx")]
    set!(Nvptx, ferroattn_ptx_nvptx),
];

impl Route {
    /// "nvvm" or "nvptx", as manifests, options and [`ROUTE_VARIABLE`] call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nvvm => "nvvm",
            Self::Nvptx => "nvptx",
        }
    }

    /// What [`ROUTE_VARIABLE`] asks for, if it is set and not empty.
    ///
    /// # Errors
    /// It is no route.
    pub fn from_env() -> Result<Option<Self>, DriverError> {
        match std::env::var_os(ROUTE_VARIABLE) {
            None => Ok(None),
            Some(name) if name.is_empty() => Ok(None),
            Some(name) => name.to_string_lossy().parse().map(Some),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Route {
    type Err = DriverError;

    fn from_str(name: &str) -> Result<Self, DriverError> {
        [Self::Nvvm, Self::Nvptx]
            .into_iter()
            .find(|route| route.name() == name)
            .ok_or_else(|| DriverError::Route {
                asked: name.to_owned(),
                there: routes(SETS),
            })
    }
}

/// The set of `route`; without one, that of [`ROUTE_VARIABLE`], or else the default.
///
/// # Errors
/// There is no such set, or none at all.
pub fn choose(route: Option<Route>) -> Result<&'static PtxSet, DriverError> {
    let route = match route {
        Some(route) => Some(route),
        None => Route::from_env()?,
    };
    find(SETS, route)
}

fn find(sets: &'static [PtxSet], route: Option<Route>) -> Result<&'static PtxSet, DriverError> {
    let found = match route {
        Some(route) => sets.iter().find(|set| set.route == route),
        None => sets.first(),
    };
    found.ok_or_else(|| DriverError::Route {
        asked: route.map_or("any", Route::name).to_owned(),
        there: routes(sets),
    })
}

/// The routes of `sets`, separated by commas; or that there are none.
fn routes(sets: &[PtxSet]) -> String {
    if sets.is_empty() {
        return "nothing (this library was built without PTX)".into();
    }
    let names: Vec<&str> = sets.iter().map(|set| set.route.name()).collect();
    names.join(", ")
}

impl PtxSet {
    /// The architectures that were compiled for.
    ///
    /// # Panics
    /// If one is none, which the tests of this crate would have found.
    pub fn archs(&self) -> ArchSet {
        let named = |name: &&str| Arch::named(name).expect("an architecture's name");
        self.archs.iter().map(named).collect()
    }

    /// The names of the kernels, in alphabetical order.
    pub fn kernels(&self) -> impl ExactSizeIterator<Item = &'static str> + use<> {
        self.kernels.iter().map(|&(name, _)| name)
    }

    /// The newest architecture that a GPU of this compute capability runs, among those that later ones run too.
    pub fn arch_for(&self, compute_capability: (u32, u32)) -> Option<Arch> {
        self.archs().newest(ArchSet::EVERYWHERE, compute_capability)
    }

    /// All that a GPU of this compute capability takes kernels from: that one, and what is for such GPUs alone.
    pub fn archs_for(&self, compute_capability: (u32, u32)) -> ArchSet {
        let exact = |arch: &Arch| arch.is_exact() && arch.runs_on(compute_capability);
        let newest = self.arch_for(compute_capability);
        newest
            .into_iter()
            .chain(self.archs().iter().filter(exact))
            .collect()
    }

    /// The architecture for which a GPU of this compute capability takes a kernel.
    pub fn arch_of(&self, entry: &Entry, compute_capability: (u32, u32)) -> Option<Arch> {
        self.archs().newest(entry.archs, compute_capability)
    }

    /// The PTX module of the kernel `name` for `arch`, unpacked; `None` if the set has no such.
    ///
    /// # Panics
    /// If the file that was embedded is damaged, which the tests of this crate would have found.
    pub fn module(&self, name: &str, arch: Arch) -> Option<String> {
        let at = self.kernels.binary_search_by_key(&name, |&(name, _)| name);
        let (_, packed) = self.kernels[at.ok()?];
        let mut modules = String::new();
        XzReader::new(packed, false)
            .read_to_string(&mut modules)
            .expect("a file that was checked when it was built");
        module(&modules, arch.name()).map(str::to_owned)
    }
}

/// The module for `arch` among modules that follow one another. Each begins with its version, then its target.
fn module<'m>(modules: &'m str, arch: &str) -> Option<&'m str> {
    const MARK: &str = ".version ";
    let target = format!("\n.target {arch}\n");
    let start = modules[..modules.find(&target)?].rfind(MARK)?;
    let rest = &modules[start + MARK.len()..];
    let end = rest
        .find(MARK)
        .map_or(modules.len(), |end| start + MARK.len() + end);
    Some(&modules[start..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn set(route: Route) -> PtxSet {
        PtxSet {
            route,
            compiler: "",
            ptx_version: "",
            source_sha256: "",
            archs: &["sm_80", "sm_90", "sm_90a"],
            kernels: &[],
        }
    }

    static BOTH: [PtxSet; 2] = [set(Route::Nvvm), set(Route::Nvptx)];

    #[test]
    fn a_set_is_found_by_its_route() {
        let route = |sets, route| find(sets, route).map(|set| set.route);
        assert_eq!(route(&BOTH, None), Ok(Route::Nvvm));
        assert_eq!(route(&BOTH, Some(Route::Nvptx)), Ok(Route::Nvptx));
        assert_eq!(route(&BOTH[1..], None), Ok(Route::Nvptx));
        let missing = route(&BOTH[1..], Some(Route::Nvvm))
            .unwrap_err()
            .to_string();
        assert!(
            missing.contains("`nvvm`") && missing.contains("nvptx"),
            "{missing}"
        );
        let none = route(&[], None).unwrap_err().to_string();
        assert!(none.contains("built without PTX"), "{none}");
    }

    #[test]
    fn routes_are_read_by_name() {
        for route in [Route::Nvvm, Route::Nvptx] {
            assert_eq!(route.to_string().parse(), Ok(route));
        }
        assert!("llvm".parse::<Route>().is_err());
    }

    #[test]
    fn a_gpu_takes_kernels_from_what_it_can_run() {
        let archs = |capability| {
            let archs = BOTH[0].archs_for(capability);
            archs.iter().map(Arch::name).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(archs((7, 5)), "");
        assert_eq!(archs((8, 6)), "sm_80");
        assert_eq!(archs((9, 0)), "sm_90 sm_90a");
        assert_eq!(archs((12, 0)), "sm_90");
    }

    #[test]
    fn a_module_is_found_among_others() {
        let of =
            |arch| format!(".version 7.8\n.target {arch}\n.visible .entry a(\n)\n{{\nret;\n}}\n");
        let both = of("sm_90") + &of("sm_90a");
        assert_eq!(module(&both, "sm_90"), Some(&*of("sm_90")));
        assert_eq!(module(&both, "sm_90a"), Some(&*of("sm_90a")));
        assert_eq!(module(&both, "sm_9"), None);
    }
}
