use super::load::values;
use super::{StateDict, WeightsError};
use burn::store::bridge;
use burn::store::burn_pack::Tensor as PackTensor;
use burn::tensor::TensorData;
use sam_lst_tiny_vit::{BatchNorm, fold_batch_norm};

/// Returns the state dict with each batch norm `x.bn` folded into its convolution `x.c`, which
/// becomes `x.c.weight` and `x.c.bias`. Convolutions without a norm are unchanged, so a file that
/// was written with folded norms is, too.
pub(crate) fn fold_batch_norms(source: &StateDict) -> Result<StateDict, WeightsError> {
    let mut tensors = Vec::new();
    for tensor in source.iter() {
        let Some((module, part)) = tensor.name.rsplit_once('.') else {
            tensors.push(tensor.clone());
            continue;
        };
        if let Some(convolution) = module.strip_suffix(".bn") {
            // A norm without its convolution remains, and is reported as unexpected.
            if source.shape(&format!("{convolution}.c.weight")).is_none() {
                tensors.push(tensor.clone());
            }
        } else if let (Some(convolution), "weight") = (module.strip_suffix(".c"), part)
            && source.shape(&format!("{convolution}.bn.weight")).is_some()
        {
            tensors.extend(fold(source, convolution, tensor)?);
        } else {
            tensors.push(tensor.clone());
        }
    }
    Ok(source.with_tensors(tensors))
}

/// The weight and bias of a convolution with its norm.
fn fold(
    source: &StateDict,
    convolution: &str,
    weight: &PackTensor,
) -> Result<[PackTensor; 2], WeightsError> {
    let channels = weight.shape.as_slice().first().copied().unwrap_or_default();
    let norm = |part: &str| -> Result<Vec<f32>, WeightsError> {
        let name = format!("{convolution}.bn.{part}");
        let path = || source.path().into();
        let Some(tensor) = source.get(&name) else {
            return Err(WeightsError::Missing { path: path(), names: vec![name] });
        };
        let (found, expected) = (tensor.shape.as_slice().to_vec(), vec![channels]);
        if found != expected {
            return Err(WeightsError::Shape { path: path(), name, found, expected });
        }
        values(source, tensor)
    };
    let (gamma, beta) = (norm("weight")?, norm("bias")?);
    let (mean, variance) = (norm("running_mean")?, norm("running_var")?);
    let norm = BatchNorm { weight: &gamma, bias: &beta, mean: &mean, variance: &variance };
    let mut folded = values(source, weight)?;
    let bias = fold_batch_norm(&mut folded, norm);
    let tensor =
        |part: &str, data| bridge::from_data(data, format!("{convolution}.c.{part}"), None);
    Ok([
        tensor("weight", TensorData::new(folded, weight.shape.clone())),
        tensor("bias", TensorData::new(bias, [channels])),
    ])
}
