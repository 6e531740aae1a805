//! The PTX inside this library: which sets there are, which files, and the text of one kernel.
//!
//! A set is everything that one compiler made of the kernels ([`Route`]). There are two, so that each can be
//! checked against the other; both are embedded, and the first is used unless somebody asks for another.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use flate2::read::GzDecoder;

use super::driver::DriverError;

/// The environment variable that chooses a set, by [`Route::name`].
pub const ROUTE_VARIABLE: &str = "FERROATTN_PTX";

/// Which compiler wrote the PTX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Route {
    /// rust-cuda: rustc_codegen_nvvm and libNVVM
    Nvvm,
    /// Stock rustc's own back end
    Nvptx,
}

/// PTX and its manifest, as the build script found them.
#[derive(Clone, Copy, Debug)]
pub struct Embedded {
    /// Which compiler wrote the PTX.
    pub route: Route,
    /// The compiler's version line.
    pub compiler: &'static str,
    /// PTX ISA version.
    pub ptx_version: &'static str,
    /// SHA-256 of the kernels' source.
    pub source_sha256: &'static str,
    /// The files, in ascending order of architecture.
    pub images: &'static [Image],
}

/// One PTX file.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// Its architecture, such as "sm_90".
    pub arch: &'static str,
    /// The lowest compute capability it runs on.
    pub compute_capability: (u32, u32),
    /// Whether it runs on no other: it is of an architecture such as "sm_90a".
    pub exact: bool,
    /// SHA-256 of the text.
    pub sha256: &'static str,
    /// The text, compressed.
    pub gz: &'static [u8],
}

/// What this library carries, the default first. Empty if it was built without PTX.
pub static SETS: &[Embedded] = include!(concat!(env!("OUT_DIR"), "/embedded_ptx.rs"));

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
pub fn choose(route: Option<Route>) -> Result<&'static Embedded, DriverError> {
    let route = match route {
        Some(route) => Some(route),
        None => Route::from_env()?,
    };
    find(SETS, route)
}

fn find(sets: &'static [Embedded], route: Option<Route>) -> Result<&'static Embedded, DriverError> {
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
fn routes(sets: &[Embedded]) -> String {
    if sets.is_empty() {
        return "nothing (this library was built without PTX)".into();
    }
    let names: Vec<&str> = sets.iter().map(|set| set.route.name()).collect();
    names.join(", ")
}

impl Embedded {
    /// The newest file that runs on a GPU of this compute capability, of those that run on later ones too.
    pub fn image_for(&self, compute_capability: (u32, u32)) -> Option<&'static Image> {
        self.images
            .iter()
            .rev()
            .find(|image| !image.exact && image.compute_capability <= compute_capability)
    }

    /// The file with what GPUs of this compute capability alone run, if there is one.
    pub fn exact_image_for(&self, compute_capability: (u32, u32)) -> Option<&'static Image> {
        self.images
            .iter()
            .find(|image| image.exact && image.compute_capability == compute_capability)
    }

    /// The architectures, separated by commas.
    pub fn archs(&self) -> String {
        Image::archs(self.images)
    }
}

impl Image {
    /// The architectures of some, separated by commas.
    pub(super) fn archs<'i>(images: impl IntoIterator<Item = &'i Self>) -> String {
        let archs: Vec<&str> = images.into_iter().map(|image| image.arch).collect();
        archs.join(", ")
    }

    /// The text. It is unpacked once for all.
    ///
    /// # Panics
    /// If the file that was embedded is no compressed text, which the build script has checked.
    pub fn text(&self) -> Arc<str> {
        static TEXTS: Mutex<BTreeMap<usize, Arc<str>>> = Mutex::new(BTreeMap::new());
        let mut texts = TEXTS.lock().expect("nobody panics while holding it");
        let unpack = || {
            let mut text = String::new();
            let read = GzDecoder::new(self.gz).read_to_string(&mut text);
            read.expect("the build script has read it");
            text.into()
        };
        texts
            .entry(self.gz.as_ptr() as usize)
            .or_insert_with(unpack)
            .clone()
    }

    /// A PTX module with the kernel `name` alone, to be compiled without waiting for the others.
    pub fn entry_ptx(&self, name: &str) -> Option<String> {
        cut(&self.text(), name)
    }
}

/// The module with the kernel `name` alone, out of a text.
///
/// The builder keeps files in a form that makes this a matter of cutting: what all kernels share comes first, and
/// each entry ends with a `}` in the first column.
fn cut(text: &str, name: &str) -> Option<String> {
    const MARK: &str = "\n.visible .entry ";
    let preamble = &text[..=text.find(MARK)?];
    let start = text.find(&format!("{MARK}{name}("))? + 1;
    let length = text[start..].find("\n}\n")? + 3;
    Some([preamble, &text[start..start + length]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGES: &[Image] = &[
        Image {
            arch: "sm_80",
            compute_capability: (8, 0),
            exact: false,
            sha256: "",
            gz: &[],
        },
        Image {
            arch: "sm_90",
            compute_capability: (9, 0),
            exact: false,
            sha256: "",
            gz: &[],
        },
        Image {
            arch: "sm_90a",
            compute_capability: (9, 0),
            exact: true,
            sha256: "",
            gz: &[],
        },
    ];

    const fn set(route: Route) -> Embedded {
        Embedded {
            route,
            compiler: "",
            ptx_version: "",
            source_sha256: "",
            images: IMAGES,
        }
    }

    static BOTH: [Embedded; 2] = [set(Route::Nvvm), set(Route::Nvptx)];

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
    fn a_gpu_gets_the_newest_file_it_can_run() {
        let arch = |capability| BOTH[0].image_for(capability).map(|image| image.arch);
        assert_eq!(arch((7, 5)), None);
        assert_eq!(arch((8, 6)), Some("sm_80"));
        assert_eq!(arch((9, 0)), Some("sm_90"));
        assert_eq!(arch((12, 0)), Some("sm_90"));
    }

    #[test]
    fn a_file_for_one_gpu_is_for_no_other() {
        let arch = |capability| BOTH[0].exact_image_for(capability).map(|image| image.arch);
        assert_eq!(arch((9, 0)), Some("sm_90a"));
        for other in [(8, 0), (8, 6), (8, 9), (9, 1), (10, 0), (12, 0)] {
            assert_eq!(arch(other), None);
        }
    }

    #[test]
    fn one_kernel_is_cut_out() {
        let text = ".version 7.8\n.visible .entry a(\n)\n{\nret;\n}\n.visible .entry ab(\n)\n{\ntrap;\n}\n";
        let cut = |name| super::cut(text, name);
        assert_eq!(
            cut("a").unwrap(),
            ".version 7.8\n.visible .entry a(\n)\n{\nret;\n}\n"
        );
        assert_eq!(
            cut("ab").unwrap(),
            ".version 7.8\n.visible .entry ab(\n)\n{\ntrap;\n}\n"
        );
        assert_eq!(cut("b"), None);
    }
}
