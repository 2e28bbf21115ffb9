//! The kernels beside Burn's own, values and gradients.

use burn::nn::pool::MaxPool2dConfig;
use burn::nn::{LayerNormConfig, PaddingConfig2d};
use burn::tensor::activation::relu;
use burn::tensor::module::{batch_norm_train, conv_transpose2d, conv2d};
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions};
use burn::tensor::{Device, Gradients, Tensor, TensorData, Tolerance};
use cpu_kernels::Statistics;

/// Values about `mean`, of deviation `deviation`, always the same.
fn values(count: usize, mean: f32, deviation: f32) -> Vec<f32> {
    let mut state = count as u64 ^ 0x9e37_79b9_7f4a_7c15;
    let mut uniform = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    // Twelve uniform variables have a variance of one.
    let mut normal = || (0..12).map(|_| uniform()).sum::<f32>();
    (0..count).map(|_| mean + deviation * normal()).collect()
}

/// A tensor on the tape whose gradient is wanted.
fn leaf<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    let device = Device::flex().autodiff();
    let values = values(shape.iter().product(), 0.3, 1.0);
    Tensor::from_data(TensorData::new(values, shape), &device).require_grad()
}

fn channels_last(tensor: Tensor<4>) -> Tensor<4> {
    tensor.permute([0, 2, 3, 1])
}

fn channels_first(tensor: Tensor<4>) -> Tensor<4> {
    tensor.permute([0, 3, 1, 2])
}

/// Something that treats every output differently.
fn score(output: Tensor<4>) -> Tensor<1> {
    let count = output.shape().num_elements();
    let weights: Vec<f32> = (0..count)
        .map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0)
        .collect();
    let weights = TensorData::new(weights, output.dims());
    let weights = Tensor::from_data(weights, &output.device());
    (output * weights).sum()
}

#[track_caller]
fn assert_close(ours: TensorData, theirs: &TensorData, what: &str) {
    let largest = theirs.iter::<f32>().fold(0.0, |a: f32, b| a.max(b.abs()));
    assert_eq!(ours.shape(), theirs.shape(), "{what}");
    for (ours, theirs) in ours.iter::<f32>().zip(theirs.iter::<f32>()) {
        let error = (ours - theirs).abs();
        assert!(
            error <= 3e-6 * largest,
            "{what}: {ours}, not {theirs}, of at most {largest}"
        );
    }
}

#[test]
fn convolutions_equal_burns() {
    // Batch, rows, columns, channels in, channels out, kernel, stride, padding.
    let cases = [
        [2, 9, 11, 3, 5, 7, 2, 3],
        [1, 8, 8, 4, 33, 3, 1, 1],
        [3, 7, 10, 16, 64, 3, 2, 1],
        [2, 6, 5, 20, 40, 1, 2, 0],
        [1, 1, 1, 2, 3, 3, 1, 1],
        [2, 5, 40, 32, 32, 3, 1, 1],
        [1, 4, 4, 3, 2, 5, 3, 2],
        [1, 6, 7, 1, 1, 2, 3, 0], // some pixels reach no output
        [1, 260, 3, 2, 2, 3, 1, 0],
    ];
    for case in cases {
        let [
            batch,
            rows,
            columns,
            channels_in,
            channels_out,
            kernel,
            stride,
            padding,
        ] = case;
        let input = leaf([batch, channels_in, rows, columns]);
        let weight = leaf([channels_out, channels_in, kernel, kernel]);
        let options = ConvOptions::new([stride; 2], [padding; 2], [1, 1], 1);
        let theirs = conv2d(input.clone(), weight.clone(), None, options);
        let ours = channels_last(input.clone());
        assert!(cpu_kernels::serves(&ours));
        let ours = channels_first(cpu_kernels::conv2d(ours, weight.clone(), stride, padding));
        let what = format!("{case:?}");
        assert_close(ours.to_data(), &theirs.to_data(), &what);
        let (ours, theirs) = (score(ours).backward(), score(theirs).backward());
        for (name, found, expected) in [
            ("input", input.grad(&ours), input.grad(&theirs)),
            ("weight", weight.grad(&ours), weight.grad(&theirs)),
        ] {
            let [found, expected] = [found, expected].map(|grad| grad.expect("one").into_data());
            assert_close(found, &expected, &format!("{what}, gradient of the {name}"));
        }

        // Off the tape the same values.
        let [input, weight] = [input, weight].map(Tensor::inner);
        let plain = cpu_kernels::conv2d(
            channels_last(input.clone()),
            weight.clone(),
            stride,
            padding,
        );
        let options = ConvOptions::new([stride; 2], [padding; 2], [1, 1], 1);
        let theirs = conv2d(input, weight, None, options);
        assert_close(
            channels_first(plain).into_data(),
            &theirs.into_data(),
            &what,
        );
    }
}

#[test]
fn gradients_flow_to_what_is_on_the_tape_and_only_there() {
    let device = Device::flex().autodiff();
    let image = Tensor::<4>::ones([1, 4, 4, 2], &device).inner();
    let weight = leaf([3, 2, 3, 3]);
    let output = cpu_kernels::conv2d(image, weight.clone(), 1, 1);
    assert!(output.is_autodiff());
    let gradients = output.sum().backward();
    let sum: f32 = weight.grad(&gradients).expect("one").sum().into_scalar();
    assert_eq!(
        sum,
        3.0 * 2.0 * 100.0,
        "each weight sees 16, 12 or 9 pixels"
    );

    // A parameter that is used twice gets the sum.
    let square = leaf([2, 2, 1, 1]);
    let input = leaf([1, 3, 3, 2]);
    let twice = cpu_kernels::conv2d(
        cpu_kernels::conv2d(input.clone(), square.clone(), 1, 0),
        square.clone(),
        1,
        0,
    );
    let gradients = score(channels_first(twice)).backward();
    let ours = square.grad(&gradients).expect("one").into_data();
    let options = || ConvOptions::new([1, 1], [0, 0], [1, 1], 1);
    let nchw = channels_first(input);
    let once = conv2d(nchw, square.clone(), None, options());
    let gradients = score(conv2d(once, square.clone(), None, options())).backward();
    assert_close(
        ours,
        &square.grad(&gradients).expect("one").into_data(),
        "used twice",
    );
}

#[test]
fn batch_norms_equal_burns() {
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
        let mut theirs = burns.output;
        if let Some(shortcut) = &shortcut {
            theirs = theirs + shortcut.clone();
        }
        if relu_follows {
            theirs = relu(theirs);
        }
        let ours = channels_last(input.clone());
        let statistics = cpu_kernels::moments(&ours);
        assert_close(statistics.mean.to_data(), &burns.mean.to_data(), "means");
        assert_close(
            statistics.variance.to_data(),
            &burns.variance.to_data(),
            "variances",
        );
        let ours = channels_first(cpu_kernels::batch_norm(
            ours,
            &statistics,
            [weight.clone(), bias.clone()],
            1e-5,
            shortcut.clone().map(channels_last),
            relu_follows,
        ));
        let what = format!("{shape:?}");
        assert_close(ours.to_data(), &theirs.to_data(), &what);
        let (ours, theirs) = (score(ours).backward(), score(theirs).backward());
        let gradient = |tensor: &Tensor<4>| {
            [&ours, &theirs].map(|found| tensor.grad(found).expect("one").into_data())
        };
        let [found, expected] = gradient(&input);
        assert_close(found, &expected, &what);
        if let Some(shortcut) = &shortcut {
            let [found, expected] = gradient(shortcut);
            assert_close(found, &expected, &what);
        }
        for parameter in [&weight, &bias] {
            let [found, expected] =
                [&ours, &theirs].map(|found| parameter.grad(found).expect("one").into_data());
            assert_close(found, &expected, &what);
        }
    }
}

#[test]
fn variances_of_far_means_do_not_cancel() {
    let device = Device::flex();
    let data = TensorData::new(values(2 * 40 * 40 * 2, 3000.0, 0.5), [2, 40, 40, 2]);
    let input = Tensor::<4>::from_data(data, &device);
    let Statistics { variance, .. } = cpu_kernels::moments(&input);
    let values: Vec<f64> = input.into_data().iter::<f64>().collect();
    for (channel, found) in variance.into_data().iter::<f64>().enumerate() {
        let values: Vec<f64> = values.iter().skip(channel).step_by(2).copied().collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let expected = squares / values.len() as f64;
        assert!(
            (found - expected).abs() < 1e-5 * expected,
            "{found}, not {expected}"
        );
    }
}

#[test]
fn max_pools_equal_burns() {
    let pool = MaxPool2dConfig::new([3, 3])
        .with_strides([2, 2])
        .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
        .init();
    for shape in [[1, 2, 8, 8], [2, 3, 9, 7], [1, 20, 5, 6], [1, 1, 1, 1]] {
        let input = leaf(shape);
        // Equal values, so that it matters which is taken.
        let input = input.clone().inner().mul_scalar(2.0).round();
        let input =
            Tensor::<4>::from_data(input.into_data(), &Device::flex().autodiff()).require_grad();
        let theirs = pool.forward(input.clone());
        let ours = channels_first(cpu_kernels::max_pool(channels_last(input.clone())));
        ours.to_data().assert_eq(&theirs.to_data(), true);
        let (ours, theirs) = (score(ours).backward(), score(theirs).backward());
        let [ours, theirs] =
            [ours, theirs].map(|found| input.grad(&found).expect("one").into_data());
        ours.assert_approx_eq::<f32>(&theirs, Tolerance::absolute(1e-6));
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let input = leaf([2, 20, 20, 8]);
    let weight = leaf([40, 8, 3, 3]);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("threads").install(|| {
            let output = cpu_kernels::conv2d(input.clone(), weight.clone(), 1, 1);
            let statistics = cpu_kernels::moments(&output);
            let parameters = [leaf([40]).inner() * 0.0 + 1.0, leaf([40]).inner() * 0.0];
            let output = cpu_kernels::batch_norm(output, &statistics, parameters, 1e-5, None, true);
            let gradients = score(output.clone()).backward();
            [
                output.into_data(),
                input.grad(&gradients).expect("one").into_data(),
                weight.grad(&gradients).expect("one").into_data(),
            ]
        })
    };
    for (one, many) in run(1).iter().zip(run(5)) {
        one.assert_eq(&many, true);
    }
}

#[test]
fn a_tape_that_recomputes_is_left_to_burn() {
    let plain = Device::flex();
    let tape = plain.clone().autodiff();
    let recomputing = plain.clone().autodiff().gradient_checkpointing();
    for (device, served) in [(plain, true), (tape, true), (recomputing, false)] {
        let input = Tensor::<4>::ones([1, 2, 2, 1], &device);
        assert_eq!(cpu_kernels::serves(&input), served, "{device:?}");
    }
}

fn off_tape<const D: usize>(shape: [usize; D], deviation: f32) -> Tensor<D> {
    let values = values(shape.iter().product(), 0.1, deviation);
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

#[test]
fn gelus_values_and_gradients() {
    // More values than a thread takes at a time, and fewer than a vector.
    for shape in [[3, 50_000], [1, 5]] {
        let input = leaf(shape) * 3.0;
        let input = input.detach().require_grad();
        let cdf = (input.clone() / std::f64::consts::SQRT_2).erf() + 1.0;
        let theirs = input.clone() * cdf * 0.5;
        let ours = cpu_kernels::gelu(input.clone());
        let score = |output: Tensor<2>| score(output.reshape([1, 1, shape[0], shape[1]]));
        let gradient = |output: Tensor<2>| {
            let gradients = score(output).backward();
            input.grad(&gradients).expect("a gradient").into_data()
        };
        assert_close(
            gradient(ours.clone()),
            &gradient(theirs.clone()),
            "gradient",
        );
        let theirs = theirs.into_data();
        assert_close(ours.into_data(), &theirs, "on the tape");
        let plain = input.clone().inner();
        assert_close(
            cpu_kernels::gelu(plain.clone()).into_data(),
            &theirs,
            "off it",
        );
        plain.into_data().assert_eq(&input.into_data(), true); // a shared buffer is left alone
    }
}

#[test]
fn linear_layers_of_any_size() {
    // Rows and columns that do and do not fill groups and panels, and more rows than a thread takes at a time.
    for [rows, inputs, outputs] in [[1, 1, 1], [13, 5, 33], [1100, 24, 70], [16, 64, 32]] {
        let input = off_tape([rows, inputs], 1.0);
        let weight = off_tape([inputs, outputs], 0.5);
        let bias = off_tape([outputs], 2.0);
        let product = input.clone().matmul(weight.clone());
        let ours = cpu_kernels::linear(input.clone(), weight.clone(), None);
        assert_close(ours.into_data(), &product.to_data(), "without bias");
        let theirs = (product + bias.clone().unsqueeze()).into_data();
        let ours = cpu_kernels::linear(input.clone(), weight.clone(), Some(bias.clone()));
        assert_close(ours.into_data(), &theirs, "with bias");
        // A weight whose values do not lie one after the other.
        let turned = weight.transpose().mul_scalar(1.0).transpose();
        let ours = cpu_kernels::linear(input, turned, Some(bias));
        assert_close(ours.into_data(), &theirs, "transposed weight");
    }
}

/// Gradients of what there is of each on both tapes, which have to be of the same tensors.
#[track_caller]
fn assert_same_gradients<const D: usize, const N: usize>(
    [ours, theirs]: [Tensor<D>; 2],
    gradients: impl Fn(&Gradients) -> [Option<TensorData>; N],
    what: &str,
) {
    let score = |output: Tensor<D>| {
        let count = output.shape().num_elements();
        score(output.reshape([1, 1, 1, count])).backward()
    };
    let (ours, theirs) = (gradients(&score(ours)), gradients(&score(theirs)));
    for (i, (ours, theirs)) in ours.into_iter().zip(theirs).enumerate() {
        match (ours, theirs) {
            (Some(ours), Some(theirs)) => {
                assert_close(ours, &theirs, &format!("{what}, gradient {i}"));
            }
            (ours, theirs) => assert_eq!(ours, theirs, "{what}, gradient {i}"),
        }
    }
}

fn of<const D: usize>(tensor: &Tensor<D>, gradients: &Gradients) -> Option<TensorData> {
    tensor.grad(gradients).map(Tensor::into_data)
}

#[test]
fn gradients_of_linear_layers() {
    // The last two have more rows than a bias' gradient sums at a time.
    for [rows, inputs, outputs] in [[1, 1, 1], [13, 5, 33], [525, 24, 70], [768, 64, 32]] {
        let constant = |tensor: Tensor<2>| tensor.detach();
        for trains in [[true, true], [true, false], [false, true]] {
            let [input, weight] = [leaf([rows, inputs]), leaf([inputs, outputs])];
            let input = if trains[0] { input } else { constant(input) };
            let weight = if trains[1] { weight } else { constant(weight) };
            let bias = leaf([outputs]);
            let what = format!("{rows} x {inputs} x {outputs}, {trains:?}");
            let product = || input.clone().matmul(weight.clone());
            let ours = cpu_kernels::linear(input.clone(), weight.clone(), None);
            assert_close(ours.to_data(), &product().into_data(), &what);
            let both = |gradients: &Gradients| [of(&input, gradients), of(&weight, gradients)];
            assert_same_gradients([ours, product()], both, &what);
            let theirs = product() + bias.clone().unsqueeze();
            let ours = cpu_kernels::linear(input.clone(), weight.clone(), Some(bias.clone()));
            let all = |gradients: &Gradients| {
                let [of_input, of_weight] = both(gradients);
                [of_input, of_weight, of(&bias, gradients)]
            };
            assert_same_gradients([ours, theirs], all, &what);
        }
    }
}

#[test]
fn layer_norms_equal_burns() {
    let device = Device::flex().autodiff();
    for [rows, channels] in [[1, 1], [5, 7], [300, 256], [129, 33]] {
        let mut layer = LayerNormConfig::new(channels).init(&device);
        let (gamma, beta) = (leaf([channels]), leaf([channels]));
        layer.gamma = layer.gamma.map(|_| gamma.clone());
        layer.beta = layer.beta.map(|old| old.map(|_| beta.clone()));
        for trains in [true, false] {
            let input = leaf([2, rows, channels]);
            let [gamma, beta] = [&gamma, &beta].map(|tensor| match trains {
                true => tensor.clone(),
                false => tensor.clone().detach(),
            });
            let ours = cpu_kernels::layer_norm(input.clone(), [gamma.clone(), beta.clone()], 1e-5);
            let theirs = layer.forward(input.clone());
            let what = format!("{rows} rows of {channels}");
            assert_close(ours.to_data(), &theirs.to_data(), &what);
            if channels == 1 {
                continue; // a constant, whose gradient is rounding
            }
            let all = |gradients: &Gradients| {
                let affine = [&gamma, &beta].map(|t| trains.then(|| of(t, gradients)).flatten());
                let [of_gamma, of_beta] = affine;
                [of(&input, gradients), of_gamma, of_beta]
            };
            assert_same_gradients([ours, theirs], all, &what);
        }
    }
}

#[test]
fn transposed_convolutions_equal_burns() {
    // Batch, rows, columns, channels in, channels out, kernel, stride.
    for case in [
        [2, 3, 5, 16, 4, 2, 2],
        [1, 4, 4, 33, 40, 2, 2],
        [1, 1, 1, 2, 3, 3, 1],
        [2, 4, 3, 5, 6, 3, 2],
    ] {
        let [
            batch,
            rows,
            columns,
            channels_in,
            channels_out,
            kernel,
            stride,
        ] = case;
        let input = leaf([batch, channels_in, rows, columns]);
        let weight = leaf([channels_in, channels_out, kernel, kernel]);
        let bias = leaf([channels_out]);
        let options = ConvTransposeOptions::new([stride; 2], [0; 2], [0; 2], [1; 2], 1);
        let theirs = conv_transpose2d(input.clone(), weight.clone(), Some(bias.clone()), options);
        let ours = channels_first(cpu_kernels::conv_transpose2d(
            channels_last(input.clone()),
            weight.clone(),
            bias.clone(),
            stride,
        ));
        let what = format!("{case:?}");
        assert_close(ours.to_data(), &theirs.to_data(), &what);
        let all = |gradients: &Gradients| {
            [
                of(&input, gradients),
                of(&weight, gradients),
                of(&bias, gradients),
            ]
        };
        assert_same_gradients([ours, theirs], all, &what);
    }
}

/// `softmax(q k^T / sqrt(d) + q R_h + q R_w) v` of one window, as the paper has it, in 64 bits.
fn attention_of_a_window(
    [query, key, value]: [&dyn Fn(usize) -> Vec<f64>; 3],
    positions: [&dyn Fn(usize) -> Vec<f64>; 2],
    side: usize,
    index: usize,
) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    let query = query(index);
    let scores: Vec<f64> = (0..side * side)
        .map(|other| {
            let [by_row, by_column] = [
                index / side + side - 1 - other / side,
                index % side + side - 1 - other % side,
            ];
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
fn attention_within_windows() {
    // Windows that fill the grid, that reach beyond it, and one of all of it with more queries than a thread takes at a time.
    for (batch, grid, side, heads, head_dim) in [
        (2, 6, 3, 2, 8),
        (1, 8, 5, 3, 40),
        (1, 24, 24, 1, 16),
        (2, 3, 14, 1, 33),
    ] {
        let width = heads * head_dim;
        let qkv = off_tape([batch, grid, grid, 3 * width], 1.0);
        let padding = off_tape([3 * width], 0.7);
        let positions = [0.4, 0.5].map(|deviation| off_tape([2 * side - 1, head_dim], deviation));
        let ours =
            cpu_kernels::window_attention(qkv.clone(), padding.clone(), positions.clone(), heads);
        assert_eq!(ours.dims(), [batch, grid, grid, width]);
        let read = |data: TensorData| data.iter::<f64>().collect::<Vec<f64>>();
        let (qkv, padding) = (read(qkv.into_data()), read(padding.into_data()));
        let positions = positions.map(|table| read(table.into_data()));
        let mut expected = Vec::new();
        for place in 0..batch * grid * grid {
            let (image, row, column) = (place / (grid * grid), place / grid % grid, place % grid);
            let origin = [row / side * side, column / side * side];
            for head in 0..heads {
                let part = |part: usize| {
                    let (qkv, padding) = (&qkv, &padding);
                    move |index: usize| {
                        let [row, column] = [origin[0] + index / side, origin[1] + index % side];
                        let token = match row < grid && column < grid {
                            true => &qkv[((image * grid + row) * grid + column) * 3 * width..],
                            false => &padding[..],
                        };
                        token[part * width + head * head_dim..][..head_dim].to_vec()
                    }
                };
                let table = |axis: usize| {
                    let table = &positions[axis];
                    move |line: usize| table[line * head_dim..][..head_dim].to_vec()
                };
                expected.extend(attention_of_a_window(
                    [&part(0), &part(1), &part(2)],
                    [&table(0), &table(1)],
                    side,
                    (row - origin[0]) * side + column - origin[1],
                ));
            }
        }
        let expected: Vec<f32> = expected.into_iter().map(|value| value as f32).collect();
        let expected = TensorData::new(expected, [batch, grid, grid, width]);
        assert_close(ours.into_data(), &expected, "attended");
    }
}
