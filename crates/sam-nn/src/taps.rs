use burn::tensor::Tensor;

/// Applies layers one after the other and keeps the outputs of those at the indices `taps`.
///
/// # Panics
///
/// If `taps` is not in increasing order, or an index is not that of a layer.
pub fn forward_with_taps<L>(
    input: Tensor<4>,
    layers: impl Iterator<Item = L>,
    taps: &[usize],
    apply: impl Fn(L, Tensor<4>) -> Tensor<4>,
) -> (Tensor<4>, Vec<Tensor<4>>) {
    let mut outputs = Vec::with_capacity(taps.len());
    let mut features = input;
    for (index, layer) in layers.enumerate() {
        features = apply(layer, features);
        if taps.get(outputs.len()) == Some(&index) {
            outputs.push(features.clone());
        }
    }
    assert_eq!(
        outputs.len(),
        taps.len(),
        "taps are indices of layers in increasing order: {taps:?}"
    );
    (features, outputs)
}
