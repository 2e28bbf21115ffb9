use super::load::{First, as_f32};
use super::{StateDict, WeightsError};
use burn::store::bridge;
use burn::store::burn_pack::{Error as PackError, Tensor as PackTensor};
use burn::tensor::{DType, Shape, TensorData};
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

/// The weight and bias of a convolution with its norm. The values are read lazily.
fn fold(
    source: &StateDict,
    convolution: &str,
    weight: &PackTensor,
) -> Result<[PackTensor; 2], WeightsError> {
    let bad_value = First::default();
    let as_f32 = |tensor: &PackTensor| as_f32(tensor.clone(), source.path(), &bad_value);
    let norm: Vec<PackTensor> = ["weight", "bias", "running_mean", "running_var"]
        .iter()
        .map(|part| {
            let name = format!("{convolution}.bn.{part}");
            let tensor = source.get(&name).ok_or_else(|| WeightsError::Missing {
                path: source.path().into(),
                names: vec![name.clone()],
            })?;
            let expected = vec![weight.shape.as_slice().first().copied().unwrap_or_default()];
            let found = tensor.shape.as_slice().to_vec();
            if found != expected {
                let path = source.path().into();
                return Err(WeightsError::Shape { path, name, found, expected });
            }
            as_f32(tensor)
        })
        .collect::<Result<_, _>>()?;
    let weight = as_f32(weight)?;
    let channels = norm[0].shape.clone();
    let shape = weight.shape.clone();
    let read = move || -> Result<[Vec<f32>; 2], PackError> {
        let values = |tensor: &PackTensor| -> Result<Vec<f32>, PackError> {
            let data = bridge::to_data(tensor)?;
            data.try_into_vec().map_err(|error| PackError::ValidationError(format!("{error:?}")))
        };
        let [gamma, beta, mean, variance] =
            [values(&norm[0])?, values(&norm[1])?, values(&norm[2])?, values(&norm[3])?];
        let mut folded = values(&weight)?;
        let norm = BatchNorm { weight: &gamma, bias: &beta, mean: &mean, variance: &variance };
        let bias = fold_batch_norm(&mut folded, norm);
        Ok([folded, bias])
    };
    let tensor = |part: usize, name: &str, shape: Shape| {
        let (read, size) = (read.clone(), shape.clone());
        bridge::deferred(format!("{convolution}.c.{name}"), DType::F32, shape, None, move || {
            let [weight, bias] = read()?;
            Ok(TensorData::new(if part == 0 { weight } else { bias }, size.clone()))
        })
    };
    Ok([tensor(0, "weight", shape), tensor(1, "bias", channels)])
}
