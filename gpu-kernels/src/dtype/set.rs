//! The element types by name: one set, which kernels, requests, files and messages share, and the subsets that kernels
//! tell apart.
//!
//! A new member is a line of the set; each subset then has to say whether it takes it, or nothing compiles. What
//! kernels were compiled for is not said here: the table of kernels says it ([`crate::entry`]), and the host's checks
//! ask that.

use core::fmt;
use core::str::FromStr;

macro_rules! dtypes {
    ($($(#[$doc:meta])* $dtype:ident = $name:literal, $size:literal;)*) => {
        /// Element types of tensors.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Dtype {
            $($(#[$doc])* $dtype,)*
        }

        impl Dtype {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$dtype),*];

            /// As messages, cases and files spell it, such as "fp8_e4m3".
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$dtype => $name,)*
                }
            }

            /// Bytes per element.
            pub const fn size(self) -> usize {
                match self {
                    $(Self::$dtype => $size,)*
                }
            }
        }
    };
}

dtypes! {
    /// 32-bit float.
    F32 = "f32", 4;
    /// IEEE binary16.
    F16 = "f16", 2;
    /// bfloat16: the upper half of an f32.
    Bf16 = "bf16", 2;
    /// FP8 e4m3 as OCP defines it ("fn"): no infinity, ends at 448.
    F8E4m3 = "fp8_e4m3", 1;
    /// FP8 e5m2 as OCP defines it.
    F8E5m2 = "fp8_e5m2", 1;
    /// AMD's e4m3 of gfx942, whose bytes mean other values. Every operation refuses it; it has a name so
    /// that the refusal can say why.
    F8E4m3Fnuz = "fp8_e4m3fnuz", 1;
    /// AMD's e5m2 of gfx942; refused as [`Dtype::F8E4m3Fnuz`] is.
    F8E5m2Fnuz = "fp8_e5m2fnuz", 1;
    /// Signed byte.
    I8 = "i8", 1;
    /// Unsigned byte.
    U8 = "u8", 1;
    /// 32-bit signed integer.
    I32 = "i32", 4;
    /// 64-bit signed integer.
    I64 = "i64", 8;
}

impl Dtype {
    /// As PTX symbols spell it: [`Dtype::name`], FP8 by its format alone.
    pub fn symbol(self) -> &'static str {
        let name = self.name();
        name.strip_prefix("fp8_").unwrap_or(name)
    }

    /// Whether it is one of AMD's FP8 formats, which NVIDIA GPUs do not convert.
    pub const fn is_fnuz(self) -> bool {
        matches!(self, Self::F8E4m3Fnuz | Self::F8E5m2Fnuz)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// By [`Dtype::name`].
impl FromStr for Dtype {
    type Err = UnknownDtype;

    fn from_str(name: &str) -> Result<Self, UnknownDtype> {
        let mut all = Self::ALL.iter().copied();
        all.find(|dtype| dtype.name() == name).ok_or(UnknownDtype)
    }
}

/// A text that is no dtype's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownDtype;

impl fmt::Display for UnknownDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not one of")?;
        Dtype::ALL
            .iter()
            .try_for_each(|dtype| write!(f, " {dtype}"))
    }
}

impl core::error::Error for UnknownDtype {}

/// A dtype that a subset does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotInSubset(pub Dtype);

impl fmt::Display for NotInSubset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not taken here", self.0)
    }
}

impl core::error::Error for NotInSubset {}

/// A subset of [`Dtype`]: its members, and what it is without.
macro_rules! subset {
    (
        $(#[$doc:meta])*
        $subset:ident { $($dtype:ident $(= $number:literal)?,)* } without { $($other:ident)* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $subset {
            $(#[doc = concat!("[`Dtype::", stringify!($dtype), "`]")] $dtype $(= $number)?,)*
        }

        impl $subset {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$dtype),*];

            /// The same as a member of the whole set.
            pub const fn dtype(self) -> Dtype {
                match self {
                    $(Self::$dtype => Dtype::$dtype,)*
                }
            }
        }

        impl From<$subset> for Dtype {
            fn from(member: $subset) -> Self {
                member.dtype()
            }
        }

        impl TryFrom<Dtype> for $subset {
            type Error = NotInSubset;

            fn try_from(dtype: Dtype) -> Result<Self, NotInSubset> {
                match dtype {
                    $(Dtype::$dtype => Ok(Self::$dtype),)*
                    $(Dtype::$other)|* => Err(NotInSubset(dtype)),
                }
            }
        }
    };
}

subset! {
    /// What the tensor cores multiply.
    HalfDtype {
        F16,
        Bf16,
    } without { F32 F8E4m3 F8E5m2 F8E4m3Fnuz F8E5m2Fnuz I8 U8 I32 I64 }
}

subset! {
    /// What a query, and the output of attention, may be stored as: the numbers of `DecodeParams::query_dtype` and its
    /// like, which kernels look at if the cache is of bytes.
    #[repr(u32)]
    QueryDtype {
        Bf16 = 0,
        F16 = 1,
        F8E4m3 = 2,
    } without { F32 F8E5m2 F8E4m3Fnuz F8E5m2Fnuz I8 U8 I32 I64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for &dtype in Dtype::ALL {
            assert_eq!(dtype.name().parse(), Ok(dtype));
        }
        assert_eq!("e4m3".parse::<Dtype>(), Err(UnknownDtype));
    }

    #[test]
    fn subsets_are_what_converts_back() {
        for &dtype in Dtype::ALL {
            if let Ok(half) = HalfDtype::try_from(dtype) {
                assert_eq!((Dtype::from(half), dtype.size()), (dtype, 2));
            }
            if let Ok(query) = QueryDtype::try_from(dtype) {
                assert_eq!(Dtype::from(query), dtype);
                assert_eq!(QueryDtype::ALL[query as usize], query);
            }
        }
    }
}
