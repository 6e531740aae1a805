//! Mistakes in device memory: values that a check on the device has to find.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::pick::pick;
use crate::reference::HostTensor;
use crate::tensor::Dtype;

/// A wrong value in device memory.
#[derive(Clone, Debug)]
pub(crate) struct MemoryMistake {
    /// Where it is put.
    pub(crate) tensor: HostTensor,
    /// Which element of the tensor becomes wrong.
    pub(crate) index: Vec<usize>,
    /// The element's new bytes.
    pub(crate) bytes: Vec<u8>,
    /// What the message of the fault says.
    pub(crate) message: String,
}

impl MemoryMistake {
    /// A wrong index, length or start; the message names the element and the value.
    pub(crate) fn index(tensor: &HostTensor, index: &[usize], value: i64) -> Self {
        let message = format!("`{}` is {value}, outside ", element(tensor, index));
        Self::saying(tensor, index, value, message)
    }

    /// The same where the message says it in another way.
    ///
    /// # Panics
    /// If the tensor does not hold such integers.
    pub(crate) fn saying(
        tensor: &HostTensor,
        index: &[usize],
        value: i64,
        message: String,
    ) -> Self {
        let bytes = match tensor.dtype {
            Dtype::I32 => i32::try_from(value).expect("an i32").to_le_bytes().to_vec(),
            Dtype::I64 => value.to_le_bytes().to_vec(),
            other => panic!("{other} is no integer type of a mistake"),
        };
        Self {
            tensor: tensor.clone(),
            index: index.to_vec(),
            bytes,
            message,
        }
    }

    /// A scale that is none.
    pub(crate) fn scale(tensor: &HostTensor, index: &[usize], random: &mut ChaCha8Rng) -> Self {
        let bad = pick(random, &[0.0, -0.0, -1.0, f32::NAN, f32::INFINITY]);
        Self {
            tensor: tensor.clone(),
            index: index.to_vec(),
            bytes: bad.to_le_bytes().to_vec(),
            message: format!("`{}` is {bad}, but a scale must", element(tensor, index)),
        }
    }

    /// A bad one of `[count]` scales.
    pub(crate) fn one_scale(tensor: &HostTensor, random: &mut ChaCha8Rng) -> Self {
        let at = random.random_range(0..tensor.shape[0]);
        Self::scale(tensor, &[at], random)
    }
}

/// An element as messages name it.
fn element(tensor: &HostTensor, index: &[usize]) -> String {
    let index: Vec<String> = index.iter().map(usize::to_string).collect();
    format!("{}[{}]", tensor.storage.name, index.join(", "))
}
