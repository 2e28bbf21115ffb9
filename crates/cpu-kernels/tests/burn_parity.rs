//! Compares the kernels' values and gradients with those of Burn's own operations.

use burn::nn::pool::MaxPool2dConfig;
use burn::nn::{LayerNormConfig, PaddingConfig2d};
use burn::tensor::activation::{self, leaky_relu, log_softmax, relu, softmax};
use burn::tensor::module::{batch_norm_train, conv_transpose2d, conv2d};
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions};
use burn::tensor::{Device, Gradients, Tensor, TensorData, Tolerance};
use sam_lst_cpu_kernels::{self as kernels, Statistics, Taps};

/// Pseudo-random values with this mean and standard deviation, from a fixed seed.
fn values(count: usize, mean: f32, deviation: f32) -> Vec<f32> {
    let mut state = count as u64 ^ 0x9e37_79b9_7f4a_7c15;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    // The sum of twelve uniform variables has a variance of one.
    let mut normal = || (0..12).map(|_| uniform()).sum::<f32>();
    (0..count).map(|_| mean + deviation * normal()).collect()
}

/// An autodiff tensor that requires a gradient.
fn leaf<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    let device = Device::flex().autodiff();
    let values = values(shape.iter().product(), 0.3, 1.0);
    Tensor::from_data(TensorData::new(values, shape), &device).require_grad()
}

/// A tensor without autodiff.
fn constant<const D: usize>(shape: [usize; D], deviation: f32) -> Tensor<D> {
    let values = values(shape.iter().product(), 0.1, deviation);
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

fn channels_last(tensor: Tensor<4>) -> Tensor<4> {
    tensor.permute([0, 2, 3, 1])
}

fn channels_first(tensor: Tensor<4>) -> Tensor<4> {
    tensor.permute([0, 3, 1, 2])
}

/// A weighted sum of the outputs, with different weights.
fn score(output: Tensor<4>) -> Tensor<1> {
    let count = output.shape().num_elements();
    let weights: Vec<f32> = (0..count).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
    let weights = TensorData::new(weights, output.dims());
    let weights = Tensor::from_data(weights, &output.device());
    (output * weights).sum()
}

#[track_caller]
fn assert_close(actual: TensorData, expected: &TensorData, context: &str) {
    let largest = expected.iter::<f32>().fold(0.0, |a: f32, b| a.max(b.abs()));
    assert_eq!(actual.shape(), expected.shape(), "{context}");
    for (actual, expected) in actual.iter::<f32>().zip(expected.iter::<f32>()) {
        let error = (actual - expected).abs();
        assert!(
            error <= 3e-6 * largest,
            "{context}: {actual} instead of {expected}, with a largest value of {largest}"
        );
    }
}

#[test]
fn conv2d_matches_burn() {
    // Batch, rows, columns, channels in, channels out, kernel, stride, padding.
    let cases = [
        [2, 9, 11, 3, 5, 7, 2, 3],
        [1, 8, 8, 4, 33, 3, 1, 1],
        [3, 7, 10, 16, 64, 3, 2, 1],
        [2, 6, 5, 20, 40, 1, 2, 0],
        [1, 1, 1, 2, 3, 3, 1, 1],
        [2, 5, 40, 32, 32, 3, 1, 1],
        [1, 4, 4, 3, 2, 5, 3, 2],
        [1, 6, 7, 1, 1, 2, 3, 0], // some pixels contribute to no output
        [1, 260, 3, 2, 2, 3, 1, 0],
        [3, 7, 6, 4, 9, 3, 1, 0], // without padding, a part of the weight gradient from two images
        [1, 2, 3, 2, 3, 7, 2, 3], // a kernel larger than the image
        // In tiles, of which some are cut off, with several blocks and parts of the weight gradient.
        [2, 7, 9, 40, 33, 3, 1, 1],
        [1, 6, 6, 64, 130, 3, 1, 0],
        [1, 5, 4, 70, 32, 3, 1, 2],
        [3, 31, 38, 32, 48, 3, 1, 1],
        [1, 1, 2, 33, 32, 3, 1, 1],
    ];
    for case in cases {
        let [batch, rows, columns, channels_in, channels_out, kernel, stride, padding] = case;
        let input = leaf([batch, channels_in, rows, columns]);
        let weight = leaf([channels_out, channels_in, kernel, kernel]);
        let options = ConvOptions::new([stride; 2], [padding; 2], [1, 1], 1);
        let expected = conv2d(input.clone(), weight.clone(), None, options);
        let actual = channels_last(input.clone());
        assert!(kernels::is_supported(&actual));
        let actual = channels_first(kernels::conv2d(actual, weight.clone(), stride, padding));
        let context = format!("{case:?}");
        assert_close(actual.to_data(), &expected.to_data(), &context);
        let (actual, expected) = (score(actual).backward(), score(expected).backward());
        for (name, actual, expected) in [
            ("input", input.grad(&actual), input.grad(&expected)),
            ("weight", weight.grad(&actual), weight.grad(&expected)),
        ] {
            let [actual, expected] =
                [actual, expected].map(|grad| grad.expect("a gradient").into_data());
            assert_close(actual, &expected, &format!("{context}, gradient of the {name}"));
        }

        // Without autodiff, the values are the same.
        let [input, weight] = [input, weight].map(Tensor::inner);
        let plain = kernels::conv2d(channels_last(input.clone()), weight.clone(), stride, padding);
        let options = ConvOptions::new([stride; 2], [padding; 2], [1, 1], 1);
        let expected = conv2d(input, weight, None, options);
        assert_close(channels_first(plain).into_data(), &expected.into_data(), &context);
    }
}

#[test]
fn constants_receive_no_gradient_and_shared_parameters_the_sum() {
    let device = Device::flex().autodiff();
    let image = Tensor::<4>::ones([1, 4, 4, 2], &device).inner();
    let weight = leaf([3, 2, 3, 3]);
    let output = kernels::conv2d(image, weight.clone(), 1, 1);
    assert!(output.is_autodiff());
    let gradients = output.sum().backward();
    let sum: f32 = weight.grad(&gradients).expect("a gradient").sum().into_scalar();
    assert_eq!(sum, 3.0 * 2.0 * 100.0, "each weight is applied to 16, 12 or 9 pixels");

    // A parameter that is used twice receives the sum.
    let square = leaf([2, 2, 1, 1]);
    let input = leaf([1, 3, 3, 2]);
    let twice =
        kernels::conv2d(kernels::conv2d(input.clone(), square.clone(), 1, 0), square.clone(), 1, 0);
    let gradients = score(channels_first(twice)).backward();
    let actual = square.grad(&gradients).expect("a gradient").into_data();
    let options = || ConvOptions::new([1, 1], [0, 0], [1, 1], 1);
    let nchw = channels_first(input);
    let once = conv2d(nchw, square.clone(), None, options());
    let gradients = score(conv2d(once, square.clone(), None, options())).backward();
    assert_close(actual, &square.grad(&gradients).expect("a gradient").into_data(), "used twice");
}

#[test]
fn batch_norm_matches_burn() {
    for (shape, relu_follows, with_shortcut) in [
        ([2, 5, 7, 3], false, false),
        ([2, 5, 7, 3], true, false),
        ([3, 20, 21, 40], true, true),
        ([1, 4, 4, 17], false, true),
    ] {
        let [batch, rows, columns, channels] = shape;
        let input = leaf([batch, channels, rows, columns]);
        let shortcut = with_shortcut.then(|| leaf([batch, channels, rows, columns]));
        let (weight, bias) = (leaf([channels]), leaf([channels]));
        let burns = batch_norm_train(input.clone(), weight.clone(), bias.clone(), 1e-5);
        let mut expected = burns.output;
        if let Some(shortcut) = &shortcut {
            expected = expected + shortcut.clone();
        }
        if relu_follows {
            expected = relu(expected);
        }
        let actual = channels_last(input.clone());
        let statistics = kernels::moments(&actual);
        assert_close(statistics.mean.to_data(), &burns.mean.to_data(), "means");
        assert_close(statistics.variance.to_data(), &burns.variance.to_data(), "variances");
        let actual = channels_first(kernels::batch_norm(
            actual,
            &statistics,
            [weight.clone(), bias.clone()],
            1e-5,
            shortcut.clone().map(channels_last),
            relu_follows,
        ));
        let context = format!("{shape:?}");
        assert_close(actual.to_data(), &expected.to_data(), &context);
        let (actual, expected) = (score(actual).backward(), score(expected).backward());
        let gradients = [&actual, &expected];
        let of_image = |tensor: &Tensor<4>| {
            gradients.map(|gradients| tensor.grad(gradients).expect("a gradient").into_data())
        };
        let of_parameter = |tensor: &Tensor<1>| {
            gradients.map(|gradients| tensor.grad(gradients).expect("a gradient").into_data())
        };
        let [actual, expected] = of_image(&input);
        assert_close(actual, &expected, &context);
        if let Some(shortcut) = &shortcut {
            let [actual, expected] = of_image(shortcut);
            assert_close(actual, &expected, &context);
        }
        for parameter in [&weight, &bias] {
            let [actual, expected] = of_parameter(parameter);
            assert_close(actual, &expected, &context);
        }
    }
}

#[test]
fn group_norm_matches_burn() {
    for (shape, groups, negative_slope) in [
        ([2, 5, 7, 3], 3, 0.01),
        ([3, 40, 21, 40], 40, 0.0),
        ([1, 4, 4, 17], 17, 1.0),
        ([2, 5, 7, 12], 4, 1.0),
        ([3, 30, 21, 64], 32, 0.0),
        ([2, 3, 3, 8], 1, 0.01),
    ] {
        let [batch, rows, columns, channels] = shape;
        let input = leaf([batch, channels, rows, columns]);
        let (weight, bias) = (leaf([channels]), leaf([channels]));
        // As a batch norm of each image without scale and shift, one channel per group.
        let [ones, zeros] = [1.0, 0.0].map(|value| Tensor::full([groups], value, &input.device()));
        let images = (0..batch).map(|image| {
            let image = input.clone().narrow(0, image, 1);
            let grouped = image.reshape([1, groups, channels / groups * rows, columns]);
            let normed = batch_norm_train(grouped, ones.clone(), zeros.clone(), 1e-5).output;
            normed.reshape([1, channels, rows, columns])
        });
        let by_channel = |parameter: &Tensor<1>| parameter.clone().reshape([1, channels, 1, 1]);
        let normed = Tensor::cat(images.collect(), 0) * by_channel(&weight) + by_channel(&bias);
        let expected = leaky_relu(normed, negative_slope);
        let parameters = [weight.clone(), bias.clone()];
        let actual = channels_last(input.clone());
        let actual = kernels::group_norm(actual, groups, parameters, 1e-5, negative_slope as f32);
        let actual = channels_first(actual);
        let context = format!("{shape:?}, {groups} groups, slope {negative_slope}");
        assert_close(actual.to_data(), &expected.to_data(), &context);
        let [actual, expected] = [score(actual).backward(), score(expected).backward()];
        let [of_actual, of_expected] = [&actual, &expected]
            .map(|gradients| input.grad(gradients).expect("a gradient").into_data());
        assert_close(of_actual, &of_expected, &context);
        for parameter in [&weight, &bias] {
            let [actual, expected] = [&actual, &expected]
                .map(|gradients| parameter.grad(gradients).expect("a gradient").into_data());
            assert_close(actual, &expected, &context);
        }
    }
}

#[test]
fn variance_around_a_large_mean_does_not_cancel() {
    let device = Device::flex();
    let data = TensorData::new(values(2 * 40 * 40 * 2, 3000.0, 0.5), [2, 40, 40, 2]);
    let input = Tensor::<4>::from_data(data, &device);
    let Statistics { variance, .. } = kernels::moments(&input);
    let values: Vec<f64> = input.into_data().iter::<f64>().collect();
    for (channel, actual) in variance.into_data().iter::<f64>().enumerate() {
        let values: Vec<f64> = values.iter().skip(channel).step_by(2).copied().collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let expected = squares / values.len() as f64;
        assert!((actual - expected).abs() < 1e-5 * expected, "{actual} instead of {expected}");
    }
}

#[test]
fn max_pool_matches_burn() {
    let pool = MaxPool2dConfig::new([3, 3])
        .with_strides([2, 2])
        .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
        .init();
    for shape in [[1, 2, 8, 8], [2, 3, 9, 7], [1, 20, 5, 6], [1, 1, 1, 1]] {
        let input = leaf(shape);
        // With ties, so that it matters which pixel is chosen.
        let input = input.clone().inner().mul_scalar(2.0).round();
        let input =
            Tensor::<4>::from_data(input.into_data(), &Device::flex().autodiff()).require_grad();
        let expected = pool.forward(input.clone());
        let actual = channels_first(kernels::max_pool(channels_last(input.clone())));
        actual.to_data().assert_eq(&expected.to_data(), true);
        let (actual, expected) = (score(actual).backward(), score(expected).backward());
        let [actual, expected] = [actual, expected]
            .map(|gradients| input.grad(&gradients).expect("a gradient").into_data());
        actual.assert_approx_eq::<f32>(&expected, Tolerance::absolute(1e-6));
    }
}

#[test]
fn resample_is_two_products_with_matrices() {
    // Also inputs that no output uses, an output of three inputs, and one of none.
    let rows = Taps::new(
        4,
        vec![vec![(0, 0.25), (1, 0.75)], vec![(1, 1.0), (1, -0.5)], vec![(3, 2.0)], vec![]],
    );
    let columns = Taps::new(3, vec![vec![(0, 0.5), (1, 0.2), (2, 0.3)], vec![(2, 1.5)]]);
    let matrix = |taps: &Taps| {
        let mut values = vec![0.0; taps.to() * taps.from()];
        for output in 0..taps.to() {
            for &(input, weight) in taps.of(output) {
                values[output * taps.from() + input] += weight;
            }
        }
        let shape = [1, 1, taps.to(), taps.from()];
        Tensor::<4>::from_data(TensorData::new(values, shape), &Device::flex())
    };
    for channels in [1, 5, 32] {
        let input = leaf([2, 4, 3, channels]);
        let actual = kernels::resample(input.clone(), rows.clone(), columns.clone());
        let expected = matrix(&rows)
            .matmul(channels_first(input.clone()))
            .matmul(matrix(&columns).transpose());
        let expected = channels_last(expected);
        let context = format!("{channels} channels");
        assert_close(actual.to_data(), &expected.to_data(), &context);
        let [actual, expected] = [actual, expected].map(|output| {
            let gradients = score(output).backward();
            input.grad(&gradients).expect("a gradient").into_data()
        });
        assert_close(actual, &expected, &context);
    }
}

#[test]
fn class_sums_match_burn() {
    // The number of pixels that are processed together is 512.
    for [batch, count, height, width] in [[1, 2, 1, 1], [2, 3, 4, 5], [2, 9, 30, 40]] {
        let logits = leaf([batch, count, height, width]);
        // All classes, no class, and left out.
        let classes: Vec<u32> = (0..batch * height * width)
            .map(|pixel| (pixel * 7 + pixel / 3) as u32 % (count as u32 + 2))
            .collect();
        let mask = |is_one: &dyn Fn(u32) -> bool| {
            let values: Vec<f32> = classes.iter().map(|&class| f32::from(is_one(class))).collect();
            let values = TensorData::new(values, [batch, 1, height, width]);
            Tensor::<4>::from_data(values, &Device::flex())
        };
        let shown = mask(&|class| class <= count as u32);
        let of_class = (0..count as u32).map(|class| mask(&|other| other == class)).collect();
        let targets = Tensor::cat(of_class, 1);
        let logs = log_softmax(logits.clone(), 1);
        let probabilities = logs.clone().exp();
        let sum = |pixels: Tensor<4>| pixels.sum_dims(&[0, 2, 3]).reshape([1, count]);
        let expected: Tensor<2> = Tensor::cat(
            vec![
                sum(probabilities.clone() * targets.clone()),
                sum(probabilities.clone() * probabilities * shown),
                sum(-logs * targets.clone()),
                sum(targets + logits.clone() * 0.0),
            ],
            0,
        );
        let actual = kernels::class_sums(logits.clone(), classes, 1e6);
        let context = format!("{count} classes");
        assert_close(actual.to_data(), &expected.to_data(), &context);
        let [actual, expected] = [actual, expected].map(|sums| {
            let gradients = score(sums.reshape([1, 1, 4, count])).backward();
            logits.grad(&gradients).expect("a gradient").into_data()
        });
        assert_close(actual, &expected, &context);
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let input = leaf([2, 20, 20, 8]);
    let weight = leaf([40, 8, 3, 3]);
    let tokens = leaf([1, 1200, 16]);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("threads").install(|| {
            let output = kernels::conv2d(input.clone(), weight.clone(), 1, 1);
            let statistics = kernels::moments(&output);
            let parameters = [leaf([40]).inner() * 0.0 + 1.0, leaf([40]).inner() * 0.0];
            let output = kernels::batch_norm(output, &statistics, parameters, 1e-5, None, true);
            let few = tokens.clone().narrow(1, 0, 20);
            let attended = kernels::attention(tokens.clone(), few.clone(), few, 2);
            let classes = (0..800).map(|pixel| pixel % 10).collect();
            let sums = kernels::class_sums(channels_first(output.clone()), classes, 1e6);
            let twice = |size| {
                Taps::new(size, (0..2 * size).map(|i| vec![(i / 2, 0.7), (i % 2, 0.3)]).collect())
            };
            let enlarged = kernels::resample(output.clone(), twice(20), twice(20));
            let projection = leaf([16, 24]);
            let rows = tokens.clone().reshape([1200, 16]);
            let projected = kernels::linear(rows, projection.clone(), None);
            let total = score(output.clone()) + attended.clone().powi_scalar(2).sum();
            let total = total + sums.clone().powi_scalar(2).sum() + score(enlarged.clone());
            let total = total + projected.clone().powi_scalar(2).sum();
            let affine = [leaf([40]).inner() * 0.0 + 1.0, leaf([40]).inner() * 0.0];
            let normed = kernels::group_norm(output.clone(), 5, affine, 1e-5, 0.01);
            let total = total + score(normed.clone());
            let [qkv, padding] = [leaf([2, 9, 9, 48]), leaf([1, 1, 1, 48])];
            let flat = || padding.clone().reshape([48]);
            let tables = [leaf([7, 8]) * 0.3, leaf([7, 8]) * 0.3];
            let windows = kernels::window_attention(qkv.clone(), flat(), tables, 2);
            let biases = leaf([2, 16]);
            let biased = kernels::biased_window_attention(qkv.clone(), flat(), biases);
            let depthwise = leaf([8, 1, 3, 3]);
            let blurred = kernels::depthwise_conv2d(input.clone(), depthwise.clone(), leaf([8]), 1);
            let total = total + score(windows) + score(biased) + score(blurred);
            let gradients = total.backward();
            [
                qkv.grad(&gradients).expect("a gradient").into_data(),
                padding.grad(&gradients).expect("a gradient").into_data(),
                depthwise.grad(&gradients).expect("a gradient").into_data(),
                output.into_data(),
                attended.into_data(),
                sums.into_data(),
                enlarged.into_data(),
                projected.into_data(),
                normed.into_data(),
                projection.grad(&gradients).expect("a gradient").into_data(),
                tokens.grad(&gradients).expect("a gradient").into_data(),
                input.grad(&gradients).expect("a gradient").into_data(),
                weight.grad(&gradients).expect("a gradient").into_data(),
            ]
        })
    };
    for (one, many) in run(1).iter().zip(run(5)) {
        one.assert_eq(&many, true);
    }
}

#[test]
fn gradient_checkpointing_is_not_supported() {
    let flex = Device::flex();
    let autodiff = flex.clone().autodiff();
    let checkpointing = flex.clone().autodiff().gradient_checkpointing();
    for (device, supported) in [(flex, true), (autodiff, true), (checkpointing, false)] {
        let input = Tensor::<4>::ones([1, 2, 2, 1], &device);
        assert_eq!(kernels::is_supported(&input), supported, "{device:?}");
    }
}

#[test]
fn gelu_matches_its_definition() {
    // More values than one task handles, and fewer than a vector.
    for shape in [[3, 50_000], [1, 5]] {
        let input = leaf(shape) * 3.0;
        let input = input.detach().require_grad();
        let cdf = (input.clone() / std::f64::consts::SQRT_2).erf() + 1.0;
        let expected = input.clone() * cdf * 0.5;
        let actual = kernels::gelu(input.clone());
        let score = |output: Tensor<2>| score(output.reshape([1, 1, shape[0], shape[1]]));
        let gradient = |output: Tensor<2>| {
            let gradients = score(output).backward();
            input.grad(&gradients).expect("a gradient").into_data()
        };
        assert_close(gradient(actual.clone()), &gradient(expected.clone()), "gradient");
        let expected = expected.into_data();
        let actual = actual.into_data();
        // `erf` in 32 bits is exact to 4e-7, so each value is, and not only the largest.
        let data = input.to_data();
        let results = actual.iter::<f32>().zip(expected.iter::<f32>());
        for (x, (actual, expected)) in data.iter::<f32>().zip(results) {
            let error = (actual - expected).abs();
            assert!(x.abs() > 3.0 || error < 2e-6, "{x}: {actual} instead of {expected}");
        }
        assert_close(actual, &expected, "with autodiff");
        let plain = input.clone().inner();
        assert_close(kernels::gelu(plain.clone()).into_data(), &expected, "without autodiff");
        plain.into_data().assert_eq(&input.into_data(), true); // a shared buffer is not modified
    }
}

#[test]
fn linear_matches_burn() {
    // Rows and columns that do and do not fill blocks and panels, and more rows than one task has.
    for [rows, inputs, outputs] in [[1, 1, 1], [13, 5, 33], [1100, 24, 70], [16, 64, 32]] {
        let input = constant([rows, inputs], 1.0);
        let weight = constant([inputs, outputs], 0.5);
        let bias = constant([outputs], 2.0);
        let product = input.clone().matmul(weight.clone());
        let actual = kernels::linear(input.clone(), weight.clone(), None);
        assert_close(actual.into_data(), &product.to_data(), "without bias");
        let expected = (product + bias.clone().unsqueeze()).into_data();
        let actual = kernels::linear(input.clone(), weight.clone(), Some(bias.clone()));
        assert_close(actual.into_data(), &expected, "with bias");
        // A weight that is not contiguous.
        let transposed = weight.transpose().mul_scalar(1.0).transpose();
        let actual = kernels::linear(input, transposed, Some(bias));
        assert_close(actual.into_data(), &expected, "transposed weight");
    }
}

/// Asserts that both outputs have gradients for the same tensors, with the same values.
#[track_caller]
fn assert_same_gradients<const D: usize, const N: usize>(
    [actual, expected]: [Tensor<D>; 2],
    gradients: impl Fn(&Gradients) -> [Option<TensorData>; N],
    context: &str,
) {
    let score = |output: Tensor<D>| {
        let count = output.shape().num_elements();
        score(output.reshape([1, 1, 1, count])).backward()
    };
    let (actual, expected) = (gradients(&score(actual)), gradients(&score(expected)));
    for (i, (actual, expected)) in actual.into_iter().zip(expected).enumerate() {
        match (actual, expected) {
            (Some(actual), Some(expected)) => {
                assert_close(actual, &expected, &format!("{context}, gradient {i}"));
            }
            (actual, expected) => assert_eq!(actual, expected, "{context}, gradient {i}"),
        }
    }
}

fn gradient_of<const D: usize>(tensor: &Tensor<D>, gradients: &Gradients) -> Option<TensorData> {
    tensor.grad(gradients).map(Tensor::into_data)
}

#[test]
fn linear_gradients_match_burn() {
    // The last two have more rows than one part of the bias gradient.
    for [rows, inputs, outputs] in [[1, 1, 1], [13, 5, 33], [525, 24, 70], [768, 64, 32]] {
        for requires_grad in [[true, true], [true, false], [false, true]] {
            let [input, weight] = [leaf([rows, inputs]), leaf([inputs, outputs])];
            let input = if requires_grad[0] { input } else { input.detach() };
            let weight = if requires_grad[1] { weight } else { weight.detach() };
            let bias = leaf([outputs]);
            let context = format!("{rows} x {inputs} x {outputs}, {requires_grad:?}");
            let product = || input.clone().matmul(weight.clone());
            let actual = kernels::linear(input.clone(), weight.clone(), None);
            assert_close(actual.to_data(), &product().into_data(), &context);
            let both = |gradients: &Gradients| {
                [gradient_of(&input, gradients), gradient_of(&weight, gradients)]
            };
            assert_same_gradients([actual, product()], both, &context);
            let expected = product() + bias.clone().unsqueeze();
            let actual = kernels::linear(input.clone(), weight.clone(), Some(bias.clone()));
            let all = |gradients: &Gradients| {
                let [input_gradient, weight_gradient] = both(gradients);
                [input_gradient, weight_gradient, gradient_of(&bias, gradients)]
            };
            assert_same_gradients([actual, expected], all, &context);
        }
    }
}

#[test]
fn depthwise_conv2d_matches_burn() {
    // Batch, rows, columns, channels, kernel, stride: several bands of rows; channels that do and do
    // not fill panels; kernels larger than the image; strides larger than the kernel.
    for [batch, rows, columns, channels, side, stride] in [
        [2, 19, 7, 33, 3, 1],
        [1, 2, 3, 5, 7, 1],
        [2, 37, 9, 40, 3, 2],
        [1, 40, 6, 8, 3, 4],
        [1, 9, 1, 1, 1, 1],
    ] {
        let input = leaf([batch, rows, columns, channels]);
        let weight = leaf([channels, 1, side, side]);
        let bias = leaf([channels]);
        let options = ConvOptions::new([stride; 2], [side / 2; 2], [1, 1], channels);
        let expected =
            conv2d(channels_first(input.clone()), weight.clone(), Some(bias.clone()), options);
        let expected = channels_last(expected);
        let actual = kernels::depthwise_conv2d(input.clone(), weight.clone(), bias.clone(), stride);
        let context = format!("{rows} x {columns} x {channels}, kernel {side}, stride {stride}");
        assert_close(actual.clone().into_data(), &expected.clone().into_data(), &context);
        let gradients = [score(actual).backward(), score(expected).backward()];
        let both = gradients.each_ref();
        assert_equal_gradients(both, &input, &context);
        assert_equal_gradients(both, &weight, &context);
        assert_equal_gradients(both, &bias, &context);
    }
}

/// A sum gives both of its inputs the same gradient, in one buffer.
#[test]
fn gradients_that_share_a_buffer_are_not_overwritten() {
    let a = leaf([40, 33]);
    let of_a = |gradients: &Gradients| [gradient_of(&a, gradients)];
    let actual = kernels::gelu(a.clone()) + kernels::gelu(a.clone() * 0.7);
    let expected = activation::gelu(a.clone()) + activation::gelu(a.clone() * 0.7);
    assert_same_gradients([actual, expected], of_a, "gelu");

    let norm = |input: Tensor<2>| {
        let affine = [(); 2].map(|()| constant([33], 0.5));
        kernels::layer_norm(input, affine, 1e-5)
    };
    let actual = norm(a.clone()) + norm(a.clone() * 0.7 + 0.1);
    let by_hand = |input: Tensor<2>| {
        let centred = input.clone() - input.mean_dim(1);
        let variance = (centred.clone() * centred.clone()).mean_dim(1);
        let affine = constant::<1>([33], 0.5).unsqueeze::<2>();
        let affine = Tensor::from_data(affine.into_data(), &a.device());
        centred / (variance + 1e-5).sqrt() * affine.clone() + affine
    };
    let expected = by_hand(a.clone()) + by_hand(a.clone() * 0.7 + 0.1);
    assert_same_gradients([actual, expected], of_a, "layer norm");

    let image = leaf([2, 33, 5, 4]);
    let of_image = |gradients: &Gradients| [gradient_of(&image, gradients)];
    let scaled = || image.clone() * 0.7 + 0.1;
    let norm = |input: Tensor<4>| {
        let input = channels_last(input);
        let statistics = kernels::moments(&input);
        let affine = [leaf([33]) * 0.0 + 1.0, leaf([33]) * 0.0];
        channels_first(kernels::batch_norm(input, &statistics, affine, 1e-5, None, true))
    };
    let burns = |input: Tensor<4>| {
        let affine = [leaf([33]) * 0.0 + 1.0, leaf([33]) * 0.0];
        let [weight, bias] = affine;
        relu(batch_norm_train(input, weight, bias, 1e-5).output)
    };
    let actual = norm(image.clone()) + norm(scaled());
    let expected = burns(image.clone()) + burns(scaled());
    assert_same_gradients([actual, expected], of_image, "batch norm");
}

#[test]
fn linear_by_image_and_its_gradients_match_burn() {
    for [batch, rows, inputs, outputs] in [[1, 1, 1, 1], [3, 13, 5, 33], [2, 1100, 32, 9]] {
        for requires_grad in [[true, true], [true, false], [false, true]] {
            let input = leaf([batch, rows, inputs]);
            let weight = leaf([batch, outputs, inputs]);
            let input = if requires_grad[0] { input } else { input.detach() };
            let weight = if requires_grad[1] { weight } else { weight.detach() };
            let context = format!("{batch} x {rows} x {inputs} x {outputs}, {requires_grad:?}");
            let actual = kernels::linear_by_image(input.clone(), weight.clone());
            let expected = input.clone().matmul(weight.clone().swap_dims(1, 2));
            assert_close(actual.to_data(), &expected.to_data(), &context);
            let both = |gradients: &Gradients| {
                [gradient_of(&input, gradients), gradient_of(&weight, gradients)]
            };
            assert_same_gradients([actual, expected], both, &context);
        }
    }
}

#[test]
fn layer_norm_matches_burn() {
    let device = Device::flex().autodiff();
    for [rows, channels] in [[1, 1], [5, 7], [300, 256], [129, 33]] {
        let mut layer = LayerNormConfig::new(channels).init(&device);
        let (gamma, beta) = (leaf([channels]), leaf([channels]));
        layer.gamma = layer.gamma.map(|_| gamma.clone());
        layer.beta = layer.beta.map(|old| old.map(|_| beta.clone()));
        for requires_grad in [true, false] {
            let input = leaf([2, rows, channels]);
            let [gamma, beta] = [&gamma, &beta]
                .map(|tensor| if requires_grad { tensor.clone() } else { tensor.clone().detach() });
            let actual = kernels::layer_norm(input.clone(), [gamma.clone(), beta.clone()], 1e-5);
            let expected = layer.forward(input.clone());
            let context = format!("{rows} rows of {channels}");
            assert_close(actual.to_data(), &expected.to_data(), &context);
            if channels == 1 {
                continue; // the output is constant, its gradient rounding errors
            }
            let all = |gradients: &Gradients| {
                let [gamma_gradient, beta_gradient] = [&gamma, &beta]
                    .map(|t| requires_grad.then(|| gradient_of(t, gradients)).flatten());
                [gradient_of(&input, gradients), gamma_gradient, beta_gradient]
            };
            assert_same_gradients([actual, expected], all, &context);
        }
    }
}

#[test]
fn attention_and_its_gradients_match_burn() {
    // Batch, queries, keys, heads, width of a head. More queries than one task has; more keys than
    // a vector has, or fewer.
    for [batch, queries, keys, heads, width] in [
        [1, 1, 1, 1, 1],
        [2, 5, 7, 3, 4],
        [2, 1100, 10, 2, 16],
        [1, 10, 700, 4, 16],
        [2, 3, 33, 1, 5],
        // Widths of whole vectors, and of a vector and a rest, with more queries than one task has.
        [1, 5, 7, 2, 32],
        [2, 600, 20, 3, 24],
    ] {
        let query = leaf([batch, queries, heads * width]);
        let [key, value] = [(); 2].map(|()| leaf([batch, keys, heads * width]));
        // So that queries, keys and values differ.
        let inputs = || [query.clone() * 1.5, key.clone() * -0.8 + 0.2, value.clone()];
        let expected = {
            let [query, key, value] = inputs().map(|tensor| {
                let [batch, tokens, _] = tensor.dims();
                tensor.reshape([batch, tokens, heads, width]).swap_dims(1, 2)
            });
            let scores = query.matmul(key.swap_dims(2, 3)) / (width as f64).sqrt();
            let attended = softmax(scores, 3).matmul(value).swap_dims(1, 2);
            attended.reshape([batch, queries, heads * width])
        };
        let [q, k, v] = inputs();
        let actual = kernels::attention(q, k, v, heads);
        let context = format!("{queries} queries, {keys} keys, {heads} heads of {width}");
        assert_close(actual.to_data(), &expected.to_data(), &context);
        let all = |gradients: &Gradients| {
            // With one key, the weights are constant.
            let of = |tensor| (keys > 1).then(|| gradient_of(tensor, gradients)).flatten();
            [of(&query), of(&key), gradient_of(&value, gradients)]
        };
        assert_same_gradients([actual, expected], all, &context);
    }
}

#[test]
fn conv_transpose2d_matches_burn() {
    // Batch, rows, columns, channels in, channels out, kernel, stride.
    for case in [
        [2, 3, 5, 16, 4, 2, 2],
        [1, 4, 4, 33, 40, 2, 2],
        [1, 1, 1, 2, 3, 3, 1],
        [2, 4, 3, 5, 6, 3, 2],
    ] {
        let [batch, rows, columns, channels_in, channels_out, kernel, stride] = case;
        let input = leaf([batch, channels_in, rows, columns]);
        let weight = leaf([channels_in, channels_out, kernel, kernel]);
        let bias = leaf([channels_out]);
        let options = ConvTransposeOptions::new([stride; 2], [0; 2], [0; 2], [1; 2], 1);
        let expected = conv_transpose2d(input.clone(), weight.clone(), Some(bias.clone()), options);
        let actual = channels_first(kernels::conv_transpose2d(
            channels_last(input.clone()),
            weight.clone(),
            bias.clone(),
            stride,
        ));
        let context = format!("{case:?}");
        assert_close(actual.to_data(), &expected.to_data(), &context);
        let all = |gradients: &Gradients| {
            [
                gradient_of(&input, gradients),
                gradient_of(&weight, gradients),
                gradient_of(&bias, gradients),
            ]
        };
        assert_same_gradients([actual, expected], all, &context);
    }
}

/// The output of one query of a window, `softmax(q k^T / sqrt(d) + q R_h + q R_w) v` as in the
/// paper, in 64 bits.
fn reference_attention(
    [query, key, value]: [&dyn Fn(usize) -> Vec<f64>; 3],
    positions: [&dyn Fn(usize) -> Vec<f64>; 2],
    side: usize,
    index: usize,
) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    let query = query(index);
    let scores: Vec<f64> = (0..side * side)
        .map(|other| {
            let [by_row, by_column] =
                [index / side + side - 1 - other / side, index % side + side - 1 - other % side];
            dot(&query, &key(other)) / (query.len() as f64).sqrt()
                + dot(&query, &positions[0](by_row))
                + dot(&query, &positions[1](by_column))
        })
        .collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let mut attended = vec![0.0; query.len()];
    for (other, weight) in weights.iter().enumerate() {
        for (sum, value) in attended.iter_mut().zip(value(other)) {
            *sum += weight * value;
        }
    }
    attended.iter().map(|value| value / sum).collect()
}

#[test]
fn window_attention_matches_its_definition() {
    // Windows that divide the grid; windows that extend beyond it; one that covers the grid, with
    // more queries than one task has.
    for (batch, grid, side, heads, head_dim) in
        [(2, 6, 3, 2, 8), (1, 8, 5, 3, 40), (1, 24, 24, 1, 16), (2, 3, 14, 1, 33)]
    {
        let width = heads * head_dim;
        let qkv = constant([batch, grid, grid, 3 * width], 1.0);
        let padding = constant([3 * width], 0.7);
        let positions = [0.4, 0.5].map(|deviation| constant([2 * side - 1, head_dim], deviation));
        let actual =
            kernels::window_attention(qkv.clone(), padding.clone(), positions.clone(), heads);
        assert_eq!(actual.dims(), [batch, grid, grid, width]);
        let read = |data: TensorData| data.iter::<f64>().collect::<Vec<f64>>();
        let (qkv, padding) = (read(qkv.into_data()), read(padding.into_data()));
        let positions = positions.map(|table| read(table.into_data()));
        let mut expected = Vec::new();
        for token in 0..batch * grid * grid {
            let (image, row, column) = (token / (grid * grid), token / grid % grid, token % grid);
            let origin = [row / side * side, column / side * side];
            for head in 0..heads {
                let part = |part: usize| {
                    let (qkv, padding) = (&qkv, &padding);
                    move |index: usize| {
                        let [row, column] = [origin[0] + index / side, origin[1] + index % side];
                        let token = if row < grid && column < grid {
                            &qkv[((image * grid + row) * grid + column) * 3 * width..]
                        } else {
                            &padding[..]
                        };
                        token[part * width + head * head_dim..][..head_dim].to_vec()
                    }
                };
                let table = |axis: usize| {
                    let table = &positions[axis];
                    move |line: usize| table[line * head_dim..][..head_dim].to_vec()
                };
                expected.extend(reference_attention(
                    [&part(0), &part(1), &part(2)],
                    [&table(0), &table(1)],
                    side,
                    (row - origin[0]) * side + column - origin[1],
                ));
            }
        }
        let expected: Vec<f32> = expected.into_iter().map(|value| value as f32).collect();
        let expected = TensorData::new(expected, [batch, grid, grid, width]);
        assert_close(actual.into_data(), &expected, "attended");
    }
}

/// Attention within windows by Burn's operations, of queries, keys and values `[3, heads, d]` or
/// `[heads, 3, d]` of each token; `scores` adds to the scores `[B * windows, heads, N, N]`, given the
/// queries `[B * windows, heads, N, d]`.
fn windowed(
    qkv: Tensor<4>,
    padding: Tensor<1>,
    side: usize,
    heads: usize,
    part_major: bool,
    scores: impl Fn(Tensor<4>) -> Tensor<4>,
) -> Tensor<4> {
    let [batch, grid, _, width] = qkv.dims();
    let (channels, head_dim) = (width / 3, width / 3 / heads);
    let padded = grid.next_multiple_of(side);
    let windows = padded / side;
    let fill = |rows, columns| {
        padding.clone().reshape([1, 1, 1, width]).expand([batch, rows, columns, width])
    };
    let mut rows = vec![qkv];
    if padded > grid {
        rows = vec![Tensor::cat(vec![rows.remove(0), fill(grid, padded - grid)], 2)];
        rows.push(fill(padded - grid, padded));
    }
    let (parts, axes) = match part_major {
        true => ([3, heads], [4, 0, 2, 5, 1, 3, 6]),
        false => ([heads, 3], [5, 0, 2, 4, 1, 3, 6]),
    };
    let qkv: Tensor<5> = Tensor::cat(rows, 1)
        .reshape([batch * windows, side, windows, side, parts[0], parts[1], head_dim])
        .permute(axes)
        .reshape([3, batch * windows * windows, heads, side * side, head_dim]);
    let [query, key, value] =
        [0, 1, 2].map(|part| qkv.clone().narrow(0, part, 1).squeeze_dim::<4>(0));
    let products = query.clone().matmul(key.swap_dims(2, 3)) * (head_dim as f64).powf(-0.5);
    softmax(products + scores(query), 3)
        .matmul(value)
        .reshape([batch * windows, windows, heads, side, side, head_dim])
        .permute([0, 3, 1, 4, 2, 5])
        .reshape([batch, padded, padded, channels])
        .slice([0..batch, 0..grid, 0..grid])
}

const WINDOWS: [[usize; 5]; 4] =
    [[2, 6, 3, 2, 8], [1, 8, 5, 3, 40], [1, 36, 36, 1, 16], [2, 3, 7, 1, 33]];

#[track_caller]
fn assert_equal_gradients<const D: usize>(
    [ours, theirs]: [&Gradients; 2],
    tensor: &Tensor<D>,
    context: &str,
) {
    let [ours, theirs] =
        [ours, theirs].map(|gradients| tensor.grad(gradients).expect("a gradient").into_data());
    let largest = theirs.iter::<f32>().fold(0.0, |a: f32, b| a.max(b.abs()));
    for (ours, theirs) in ours.iter::<f32>().zip(theirs.iter::<f32>()) {
        let error = (ours - theirs).abs();
        assert!(error <= 2e-5 * largest, "{context}: {ours} instead of {theirs} of {largest}");
    }
}

#[test]
fn window_attention_has_burns_gradients() {
    for [batch, grid, side, heads, head_dim] in WINDOWS {
        let qkv = leaf([batch, grid, grid, 3 * heads * head_dim]);
        let padding = leaf([3 * heads * head_dim]);
        let tables = [leaf([2 * side - 1, head_dim]), leaf([2 * side - 1, head_dim])];
        // Of smaller scores, rounding errors are smaller too.
        let scaled = || tables.clone().map(|table| table * 0.3);
        let output = kernels::window_attention(qkv.clone(), padding.clone(), scaled(), heads);
        let count = side * side;
        let device = qkv.device();
        let terms = |query: Tensor<4>| {
            let tables = scaled();
            let [windows, ..] = query.dims();
            let of_axis = |axis: usize| {
                // One row of the keys' table for each line of queries, so that little is in memory.
                let lines: Vec<Tensor<4>> = (0..count)
                    .map(|token| {
                        let own = [token / side, token % side][axis];
                        let rows: Vec<i64> = (0..count)
                            .map(|key| (own + side - 1 - [key / side, key % side][axis]) as i64)
                            .collect();
                        let rows = Tensor::<1, burn::tensor::Int>::from_data(&rows[..], &device);
                        let table = tables[axis].clone().select(0, rows).transpose();
                        let query = query.clone().narrow(2, token, 1);
                        let query = query.reshape([windows * heads, head_dim]);
                        query.matmul(table).reshape([windows, heads, 1, count])
                    })
                    .collect();
                Tensor::cat(lines, 2)
            };
            of_axis(0) + of_axis(1)
        };
        let expected = windowed(qkv.clone(), padding.clone(), side, heads, true, terms);
        let context = format!("{grid} x {grid}, windows of {side}, {heads} heads of {head_dim}");
        assert_close(output.clone().into_data(), &expected.clone().into_data(), &context);
        let gradients = [score(output).backward(), score(expected).backward()];
        let both = gradients.each_ref();
        assert_equal_gradients(both, &qkv, &context);
        if grid % side != 0 {
            assert_equal_gradients(both, &padding, &context);
        }
        tables.iter().for_each(|table| assert_equal_gradients(both, table, &context));
    }
}

#[test]
fn biased_window_attention_has_burns_gradients() {
    for [batch, grid, side, heads, head_dim] in WINDOWS {
        let qkv = leaf([batch, grid, grid, 3 * heads * head_dim]);
        let padding = leaf([3 * heads * head_dim]);
        let biases = leaf([heads, side * side]);
        let output = kernels::biased_window_attention(qkv.clone(), padding.clone(), biases.clone());
        let count = side * side;
        let pairs = (0..count).flat_map(|query| (0..count).map(move |key| (query, key)));
        let distance = |(query, key): (usize, usize)| {
            let rows = (query / side).abs_diff(key / side);
            (rows * side + (query % side).abs_diff(key % side)) as i64
        };
        let distances: Vec<i64> = pairs.map(distance).collect();
        let distances = Tensor::<1, burn::tensor::Int>::from_data(&distances[..], &qkv.device());
        let expected = windowed(qkv.clone(), padding.clone(), side, heads, false, |_| {
            biases.clone().select(1, distances.clone()).reshape([1, heads, count, count])
        });
        let context = format!("{grid} x {grid}, windows of {side}, {heads} heads of {head_dim}");
        assert_close(output.clone().into_data(), &expected.clone().into_data(), &context);
        let gradients = [score(output).backward(), score(expected).backward()];
        let both = gradients.each_ref();
        assert_equal_gradients(both, &qkv, &context);
        if grid % side != 0 {
            assert_equal_gradients(both, &padding, &context);
        }
        assert_equal_gradients(both, &biases, &context);
    }
}
