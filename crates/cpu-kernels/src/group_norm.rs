//! Group and instance normalisation of channels-last images, with the leaky ReLU that follows.

use crate::autodiff::{FlexTensor, Operation, apply, contiguous, shape, tensor, values};
use crate::batch_norm::{ChannelNorm, channel_moments, inverse_deviation, write_affine};
use crate::buffer;
use crate::channel_sums::to_f32;
use burn::tensor::Tensor;
use rayon::prelude::*;
use std::sync::Arc;

/// Group normalisation (Wu and He, arXiv 1803.08494), then leaky ReLU: each group of channels of
/// each image becomes `(input - mean) / sqrt(variance + epsilon) * weight + bias` with its own mean
/// and biased variance, and negative values are multiplied by `negative_slope`: 0 for ReLU, 1 for no
/// activation.
///
/// With as many groups as channels, this is instance normalisation (Ulyanov et al., arXiv
/// 1607.08022).
///
/// # Shapes
///
/// - input, output: `[B, H, W, C]`
/// - weight, bias: `[C]`
///
/// # Panics
///
/// If a tensor is not supported ([`is_supported`](crate::is_supported)), the shapes do not match, or
/// `groups` does not divide `C`.
pub fn group_norm(
    input: Tensor<4>,
    groups: usize,
    [weight, bias]: [Tensor<1>; 2],
    epsilon: f64,
    negative_slope: f32,
) -> Tensor<4> {
    let [.., channels] = input.dims();
    assert_eq!(weight.dims(), [channels], "one weight per channel");
    assert_eq!(bias.dims(), [channels], "one bias per channel");
    let divides = groups > 0 && channels.is_multiple_of(groups);
    assert!(divides, "{groups} groups do not divide {channels} channels");
    let norm = GroupNorm { members: (channels / groups).max(1), epsilon, negative_slope };
    apply(norm, [input.into(), weight.into(), bias.into()])
}

#[derive(Debug, Clone, Copy)]
struct GroupNorm {
    /// Channels of a group.
    members: usize,
    epsilon: f64,
    negative_slope: f32,
}

impl GroupNorm {
    /// The statistics by which each channel of an image is normalised: those of its group.
    fn statistics(&self, image: &[f32], channels: usize) -> ChannelNorm {
        let (mean, variance) = channel_moments(image, channels);
        let mut norm = ChannelNorm { mean: Vec::new(), inverse_deviation: Vec::new() };
        let groups = mean.chunks_exact(self.members).zip(variance.chunks_exact(self.members));
        for (means, variances) in groups {
            let average =
                |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / self.members as f64;
            let mean = average(&mut means.iter().map(|&mean| f64::from(mean)));
            // Variance within the channels, and of their means.
            let spread = means.iter().zip(variances).map(|(&channel_mean, &variance)| {
                f64::from(variance) + (f64::from(channel_mean) - mean).powi(2)
            });
            let variance = average(&mut { spread });
            let inverse = inverse_deviation(variance, self.epsilon);
            norm.mean.extend(std::iter::repeat_n(mean as f32, self.members));
            norm.inverse_deviation.extend(std::iter::repeat_n(inverse, self.members));
        }
        norm
    }
}

impl Operation<3> for GroupNorm {
    /// Input, weight and bias, and the statistics of each image.
    type Saved = ([FlexTensor; 3], Arc<Vec<ChannelNorm>>);

    fn forward(&self, inputs: [FlexTensor; 3], _: [bool; 3]) -> (FlexTensor, Self::Saved) {
        let inputs = inputs.map(contiguous);
        let [input, weight, bias] = &inputs;
        let size = image_size(input);
        let channels = values(weight).len();
        let mut output = buffer::zeros(values(input).len());
        let images = output.par_chunks_mut(size).zip(values(input).par_chunks(size));
        let norms = images.map(|(output, image)| {
            let norm = self.statistics(image, channels);
            let affine = norm.coefficients(values(weight), values(bias));
            write_affine(image, &affine, None, self.negative_slope, output);
            norm
        });
        let norms = norms.collect();
        (tensor(output, shape::<4>(input)), (inputs, Arc::new(norms)))
    }

    fn backward(
        &self,
        ([input, weight, bias], norms): Self::Saved,
        gradient: FlexTensor,
        _: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let gradient = contiguous(gradient);
        let size = image_size(&input);
        let channels = values(&weight).len();
        let mut input_gradient = buffer::zeros(values(&input).len());
        let images = values(&input).par_chunks(size).zip(values(&gradient).par_chunks(size));
        let images = images.zip(&*norms).zip(input_gradient.par_chunks_mut(size));
        let parts: Vec<[Vec<f64>; 2]> = images
            .map(|(((image, gradient), norm), input_gradient)| {
                let affine = norm.coefficients(values(&weight), values(&bias));
                let pixels = norm.pixels(image, gradient, Some((&affine, self.negative_slope)));
                pixels.gradients(values(&weight), self.members, input_gradient)
            })
            .collect();
        let sum = |parameter: usize| {
            let mut total = vec![0.0; channels];
            for part in &parts {
                total.iter_mut().zip(&part[parameter]).for_each(|(total, part)| *total += part);
            }
            tensor(to_f32(total), [channels])
        };
        let (weight_gradient, bias_gradient) = (sum(0), sum(1));
        let input_gradient = tensor(input_gradient, shape::<4>(&input));
        [Some(input_gradient), Some(weight_gradient), Some(bias_gradient)]
    }
}

/// Values of an image; at least 1, so that an empty batch has no chunks.
fn image_size(input: &FlexTensor) -> usize {
    let [_, rows, columns, channels] = shape::<4>(input);
    (rows * columns * channels).max(1)
}
