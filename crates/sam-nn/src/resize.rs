use burn::tensor::{Device, Tensor, TensorData};
use sam_lst_cpu_kernels::Taps;

/// Creates the matrix `[to, from]` that linearly interpolates a signal of length `from` at `to`
/// points, with half-pixel centres and without antialiasing: row `i` samples position `(i + 0.5) *
/// from / to - 0.5`, clamped at 0.
///
/// Equal to `torch.nn.functional.interpolate(mode="linear", align_corners=False)`, which SAM uses
/// for resizing.
///
/// # Panics
///
/// If `from` or `to` is zero.
pub fn interpolation_matrix(from: usize, to: usize, device: &Device) -> Tensor<2> {
    matrix(&interpolation_taps(from, to), device)
}

fn matrix(taps: &Taps, device: &Device) -> Tensor<2> {
    let (from, to) = (taps.from(), taps.to());
    let mut weights = vec![0.0_f32; to * from];
    for (output, row) in weights.chunks_exact_mut(from).enumerate() {
        for &(input, weight) in taps.of(output) {
            row[input] += weight;
        }
    }
    Tensor::from_data(TensorData::new(weights, [to, from]), device)
}

/// The rows of [`interpolation_matrix`].
fn interpolation_taps(from: usize, to: usize) -> Taps {
    assert!(
        from > 0 && to > 0,
        "cannot interpolate from {from} to {to} points: both must be positive"
    );
    let scale = from as f64 / to as f64;
    taps_at(from, to, |output| ((output as f64 + 0.5) * scale - 0.5).max(0.0))
}

/// Interpolates linearly at `to` positions in units of the `from` input points.
fn taps_at(from: usize, to: usize, position: impl Fn(usize) -> f64) -> Taps {
    let taps_of = |output: usize| {
        let position = position(output);
        let below = (position as usize).min(from - 1);
        let above = (below + 1).min(from - 1);
        let fraction = (position - below as f64) as f32;
        vec![(below, 1.0 - fraction), (above, fraction)]
    };
    Taps::new(from, (0..to).map(taps_of).collect())
}

/// Resizes the last two axes bilinearly with half-pixel centres, without antialiasing.
///
/// Implemented as two products with constant matrices, because the bilinear mode of Burn's
/// `interpolate` has no backward pass on GPU backends. An axis that already has its target size is
/// not processed.
///
/// # Shapes
///
/// - input: `[B, C, H, W]`
/// - output: `[B, C, height, width]`
///
/// # Panics
///
/// If an axis of the input, `height` or `width` is zero.
pub fn resize_bilinear(input: Tensor<4>, [height, width]: [usize; 2]) -> Tensor<4> {
    let [batch, channels, from_height, from_width] = input.dims();
    // The matrices are constants, so they are created on the device without autodiff.
    let device = input.device().inner();
    let mut output = input;
    if from_width != width {
        let matrix = interpolation_matrix(from_width, width, &device).transpose();
        output = output
            .reshape([batch * channels * from_height, from_width])
            .matmul(matrix)
            .reshape([batch, channels, from_height, width]);
    }
    if from_height != height {
        let matrix = interpolation_matrix(from_height, height, &device)
            .reshape([1, 1, height, from_height])
            .expand([batch, channels, height, from_height]);
        output = matrix.matmul(output); // [B, C, height, width]
    }
    output
}

/// As [`resize_bilinear`], for a channels-last tensor.
///
/// # Shapes
///
/// - input: `[B, H, W, C]`
/// - output: `[B, height, width, C]`
///
/// # Panics
///
/// If an axis of the input, `height` or `width` is zero.
pub fn resize_bilinear_channels_last(input: Tensor<4>, [height, width]: [usize; 2]) -> Tensor<4> {
    let [_, from_height, from_width, _] = input.dims();
    if [from_height, from_width] == [height, width] {
        return input;
    }
    if !sam_lst_cpu_kernels::is_supported(&input) {
        let resized = resize_bilinear(input.permute([0, 3, 1, 2]), [height, width]);
        return resized.permute([0, 2, 3, 1]);
    }
    let rows = interpolation_taps(from_height, height);
    let columns = interpolation_taps(from_width, width);
    sam_lst_cpu_kernels::resample(input, rows, columns)
}

/// Doubles the height and width of a channels-last image bilinearly, with the centres of the corner
/// pixels in place: `interpolate(scale_factor=2, mode="bilinear", align_corners=True)` in PyTorch.
///
/// # Shapes
///
/// - input: `[B, H, W, C]`
/// - output: `[B, 2 H, 2 W, C]`
///
/// # Panics
///
/// If `H` or `W` is zero.
pub fn double_aligned(input: Tensor<4>) -> Tensor<4> {
    let taps = |from: usize| {
        assert!(from > 0, "cannot interpolate from 0 points");
        let step = (from - 1) as f64 / (2 * from - 1) as f64;
        taps_at(from, 2 * from, |output| output as f64 * step)
    };
    let [batch, height, width, channels] = input.dims();
    let (rows, columns) = (taps(height), taps(width));
    if sam_lst_cpu_kernels::is_supported(&input) {
        return sam_lst_cpu_kernels::resample(input, rows, columns);
    }
    let device = input.device().inner();
    let product = |taps: &Taps, values: Tensor<3>| {
        let [count, ..] = values.dims();
        let matrix = matrix(taps, &device).unsqueeze::<3>();
        matrix.expand([count, taps.to(), taps.from()]).matmul(values)
    };
    let rows = product(&rows, input.reshape([batch, height, width * channels]));
    let rows = rows.reshape([2 * batch * height, width, channels]);
    product(&columns, rows).reshape([batch, 2 * height, 2 * width, channels])
}

/// Resizes the first axis linearly with half-pixel centres: `[L, C] -> [length, C]`.
///
/// # Panics
///
/// If `L` or `length` is zero.
pub fn resize_linear(input: Tensor<2>, length: usize) -> Tensor<2> {
    let [from, _] = input.dims();
    if from == length {
        return input;
    }
    interpolation_matrix(from, length, &input.device().inner()).matmul(input)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::interpolate::{Interpolate2dConfig, InterpolateMode};
    use burn::tensor::{Distribution, Tolerance};

    #[test]
    fn resize_bilinear_equals_burns_interpolation() {
        let device = Device::flex();
        for (from, to) in [([8, 8], [5, 11]), ([3, 7], [12, 28]), ([6, 6], [6, 3])] {
            let input = Tensor::<4>::random(
                [2, 3, from[0], from[1]],
                Distribution::Normal(0.0, 1.0),
                &device,
            );
            let expected = Interpolate2dConfig::new()
                .with_output_size(Some(to))
                .with_mode(InterpolateMode::Linear)
                .with_align_corners(false)
                .init()
                .forward(input.clone())
                .into_data();
            let channels_last = input.clone().permute([0, 2, 3, 1]);
            let channels_last = resize_bilinear_channels_last(channels_last, to);
            for resized in [resize_bilinear(input, to), channels_last.permute([0, 3, 1, 2])] {
                resized.into_data().assert_approx_eq::<f32>(&expected, Tolerance::absolute(1e-5));
            }
        }
    }

    #[test]
    fn doubling_with_aligned_corners_equals_burns_interpolation() {
        let device = Device::flex();
        for [height, width] in [[1, 1], [3, 5], [8, 2]] {
            let shape = [2, height, width, 3];
            let input = Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &device);
            let expected = Interpolate2dConfig::new()
                .with_output_size(Some([2 * height, 2 * width]))
                .with_mode(InterpolateMode::Linear)
                .with_align_corners(true)
                .init()
                .forward(input.clone().permute([0, 3, 1, 2]))
                .permute([0, 2, 3, 1])
                .into_data();
            // The kernels do not support gradient checkpointing, so that uses Burn's operations.
            let burns = Tensor::from_data(
                input.to_data(),
                &Device::flex().autodiff().gradient_checkpointing(),
            );
            for doubled in [double_aligned(input), double_aligned(burns)] {
                doubled.into_data().assert_approx_eq::<f32>(&expected, Tolerance::absolute(1e-5));
            }
        }
    }

    #[test]
    fn matrix_rows_sum_to_one_and_equal_lengths_give_the_identity() {
        let device = Device::flex();
        let matrix = interpolation_matrix(127, 63, &device);
        let ones = Tensor::<1>::ones([63], &device).into_data();
        matrix
            .sum_dim(1)
            .reshape([63])
            .into_data()
            .assert_approx_eq::<f32>(&ones, Tolerance::absolute(1e-6));
        interpolation_matrix(9, 9, &device)
            .into_data()
            .assert_eq(&Tensor::<2>::eye(9, &device).into_data(), true);
    }

    #[test]
    #[should_panic(expected = "cannot interpolate from 0 to 4 points")]
    fn interpolating_from_zero_points_panics() {
        interpolation_matrix(0, 4, &Device::flex());
    }
}
