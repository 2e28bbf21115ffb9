/// A sparse matrix: each output of a resampled axis is a weighted sum of some inputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Taps {
    from: usize,
    /// By output: indices of inputs, and their weights.
    of: Vec<Vec<(usize, f32)>>,
}

impl Taps {
    /// Creates the weights of outputs from indices of inputs and weights of each.
    ///
    /// # Panics
    ///
    /// If an index is not below `from`, the number of inputs.
    pub fn new(from: usize, of: Vec<Vec<(usize, f32)>>) -> Self {
        let is_valid = of.iter().flatten().all(|&(index, _)| index < from);
        assert!(is_valid, "an index of an input is not below {from}");
        Self { from, of }
    }

    /// Number of inputs.
    pub fn from(&self) -> usize {
        self.from
    }

    /// Number of outputs.
    pub fn to(&self) -> usize {
        self.of.len()
    }

    /// Indices of inputs and weights of an output.
    ///
    /// # Panics
    ///
    /// If there is no such output.
    pub fn of(&self, output: usize) -> &[(usize, f32)] {
        &self.of[output]
    }

    /// The transposed matrix, which takes gradients of outputs to gradients of inputs.
    #[cfg(feature = "flex")]
    pub(crate) fn transposed(&self) -> Self {
        let mut of = vec![Vec::new(); self.from];
        for (output, taps) in self.of.iter().enumerate() {
            for &(input, weight) in taps {
                of[input].push((output, weight));
            }
        }
        Self { from: self.of.len(), of }
    }
}
