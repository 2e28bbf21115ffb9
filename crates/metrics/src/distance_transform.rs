//! The exact Euclidean distance transform on an anisotropic grid.
//!
//! Felzenszwalb and Huttenlocher, *Distance Transforms of Sampled Functions*, Theory of Computing 8
//! (2012): squared distances are computed axis by axis, each line as the lower envelope of
//! parabolas.

/// The squared distance from every voxel to the nearest seed. `seeds` are voxel indices; there must
/// be at least one.
pub(crate) fn squared_distances(seeds: &[usize], shape: [usize; 3], spacing: [f64; 3]) -> Vec<f64> {
    let [slices, lines, width] = shape;
    let mut field = vec![f64::INFINITY; slices * lines * width];
    for &seed in seeds {
        field[seed] = 0.0;
    }
    let mut scratch = Scratch::new(shape.into_iter().max().unwrap_or(0));
    for row in field.chunks_exact_mut(width) {
        scratch.load(row.iter().copied());
        scratch.transform(spacing[2], |i, value| row[i] = value);
    }
    for plane in field.chunks_exact_mut(lines * width) {
        for x in 0..width {
            scratch.load((0..lines).map(|y| plane[y * width + x]));
            scratch.transform(spacing[1], |y, value| plane[y * width + x] = value);
        }
    }
    let plane = lines * width;
    for column in 0..plane {
        scratch.load((0..slices).map(|z| field[z * plane + column]));
        scratch.transform(spacing[0], |z, value| field[z * plane + column] = value);
    }
    field
}

/// Buffers for one line and the parabolas of its lower envelope.
struct Scratch {
    line: Vec<f64>,
    /// The vertex position of each parabola of the envelope.
    vertices: Vec<usize>,
    /// The position from which each parabola is the lowest, in units of the spacing.
    starts: Vec<f64>,
}

impl Scratch {
    fn new(longest: usize) -> Self {
        Self {
            line: Vec::with_capacity(longest),
            vertices: Vec::with_capacity(longest),
            starts: Vec::with_capacity(longest),
        }
    }

    fn load(&mut self, values: impl Iterator<Item = f64>) {
        self.line.clear();
        self.line.extend(values);
    }

    /// Writes `min_j (spacing (i - j))^2 + line[j]` for each `i`. Writes nothing for a line without
    /// seeds.
    fn transform(&mut self, spacing: f64, mut write: impl FnMut(usize, f64)) {
        let Self { line, vertices, starts } = self;
        vertices.clear();
        starts.clear();
        let weight = spacing * spacing;
        for (vertex, &height) in line.iter().enumerate() {
            if height == f64::INFINITY {
                continue;
            }
            let mut start = f64::NEG_INFINITY;
            while let (Some(&last), Some(&last_start)) = (vertices.last(), starts.last()) {
                let (a, b) = (last as f64, vertex as f64);
                start = ((height - line[last]) / weight + b * b - a * a) / (2.0 * (b - a));
                if start > last_start {
                    break;
                }
                vertices.pop();
                starts.pop();
                start = f64::NEG_INFINITY;
            }
            vertices.push(vertex);
            starts.push(start);
        }
        let mut current = 0;
        for i in 0..if vertices.is_empty() { 0 } else { line.len() } {
            while current + 1 < starts.len() && starts[current + 1] < i as f64 {
                current += 1;
            }
            let steps = i as f64 - vertices[current] as f64;
            write(i, weight * steps * steps + line[vertices[current]]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn brute_force(seeds: &[usize], shape: [usize; 3], spacing: [f64; 3]) -> Vec<f64> {
        let [_, lines, width] = shape;
        let position = |i: usize| [i / (lines * width), i / width % lines, i % width];
        (0..shape.iter().product())
            .map(|i| {
                let squared = |seed: &usize| -> f64 {
                    let (a, b) = (position(i), position(*seed));
                    (0..3)
                        .map(|axis| (spacing[axis] * (a[axis] as f64 - b[axis] as f64)).powi(2))
                        .sum()
                };
                seeds.iter().map(squared).fold(f64::INFINITY, f64::min)
            })
            .collect()
    }

    proptest! {
        #[test]
        fn equals_brute_force(
            shape in [1_usize..9, 1_usize..9, 1_usize..9],
            spacing in [0.3_f64..5.0, 0.3_f64..5.0, 0.3_f64..5.0],
            picks in prop::collection::vec(any::<prop::sample::Index>(), 1..12),
        ) {
            let count = shape.iter().product::<usize>();
            let seeds: Vec<_> = picks.iter().map(|pick| pick.index(count)).collect();
            let expected = brute_force(&seeds, shape, spacing);
            let found = squared_distances(&seeds, shape, spacing);
            for (ours, expected) in found.into_iter().zip(expected) {
                prop_assert!((ours - expected).abs() <= 1e-9 * (1.0 + expected));
            }
        }
    }
}
