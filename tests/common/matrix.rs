//! Requests against the support matrix.

use ferroattn::plan::support::{Cache, Operation, Scales, Sizes, Tensors, rows, supports};
use ferroattn::tensor::Dtype;
use ferroattn::{Error, Result};

/// All there are.
pub const DTYPES: [Dtype; Dtype::ALL.len()] = *Dtype::ALL.first_chunk().unwrap();

/// Head sizes of keys and of values.
pub fn heads((head_size, head_size_v): (u32, u32)) -> Sizes {
    Sizes::Heads {
        head_size,
        head_size_v,
    }
}

/// Holds answers to requests of an operation against its rows.
pub struct Judge {
    operation: Operation,
    accepted: usize,
    refused: usize,
    failures: Vec<String>,
}

impl Judge {
    pub fn new(operation: Operation) -> Self {
        Self {
            operation,
            accepted: 0,
            refused: 0,
            failures: Vec::new(),
        }
    }

    /// What the matrix has was accepted, everything else refused as a wrong request or as not supported.
    pub fn hold<T>(
        &mut self,
        tensors: Tensors,
        cache: Cache,
        scales: Scales,
        sizes: Sizes,
        answer: Result<T>,
    ) {
        let has = |sizes| supports(self.operation, tensors, cache, scales, sizes);
        let wrong = match (answer, has(sizes)) {
            (Ok(_), true) => {
                self.accepted += 1;
                return;
            }
            (Err(Error::Request(_) | Error::Unsupported { .. }), false) => {
                self.refused += 1;
                return;
            }
            (Ok(_), false) => "accepted, but not in the matrix".to_owned(),
            (Err(error), true) => format!("in the matrix, but refused: {error}"),
            (Err(error), false) => format!("refused with an error of another kind: {error}"),
        };
        self.failures.push(format!(
            "{tensors:?} {cache:?} {scales:?} {sizes:?}: {wrong}"
        ));
    }

    /// Complains about all that did not agree.
    pub fn finish(self) {
        let name = self.operation.name();
        let shown = self.failures.len().min(20);
        assert!(
            self.failures.is_empty(),
            "{name}, {} of them:\n{}",
            self.failures.len(),
            self.failures[..shown].join("\n")
        );
        assert!(self.refused > 0, "{name}: nothing was refused");
        let least: usize = rows()
            .iter()
            .filter(|row| row.operation == self.operation)
            .map(|row| row.tensors.len() * row.caches.len() * row.scales.len() * row.sizes.len())
            .sum();
        assert!(self.accepted >= least, "{name}: not all was asked for");
    }
}
