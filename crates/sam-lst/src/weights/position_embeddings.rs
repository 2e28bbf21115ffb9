use super::keys::VISION_TRANSFORMER;
use super::load::{load_where, values};
use super::{StateDict, WeightsError};
use burn::store::bridge;
use burn::tensor::{Device, Tensor, TensorData};
use sam_lst_backbones::VisionTransformer;
use sam_lst_sam_nn::interpolation_matrix;

const NAME: &str = "pos_embed";

/// Loads timm's file into a Vision Transformer, with those tensors that are `selected`. Position
/// embeddings of another square grid are resized bilinearly.
pub(crate) fn load_vision_transformer(
    transformer: VisionTransformer,
    source: &StateDict,
    selected: impl Fn(&str) -> bool,
) -> Result<VisionTransformer, WeightsError> {
    let positions = &transformer.pos_embed;
    let [_, count, _] = positions.dims();
    let source = with_positions_of_grid(source, count.isqrt(), &positions.device())?;
    load_where(transformer, &source, &VISION_TRANSFORMER, selected)
}

/// The state dict of a Vision Transformer with position embeddings for a grid of `grid` x
/// `grid` patches, without that of the class token. Those of another square grid are resized
/// bilinearly.
///
/// # Errors
///
/// [`WeightsError`] if they are missing, not of a square grid or not finite.
fn with_positions_of_grid(
    source: &StateDict,
    grid: usize,
    device: &Device,
) -> Result<StateDict, WeightsError> {
    let path = || source.path().into();
    let Some(tensor) = source.get(NAME) else {
        return Err(WeightsError::WrongKind {
            path: path(),
            expected: VISION_TRANSFORMER.description.into(),
            found: source.describe(),
        });
    };
    let found = tensor.shape.as_slice().to_vec();
    let wrong_shape = |channels: usize| WeightsError::Shape {
        path: path(),
        name: NAME.to_owned(),
        found: found.clone(),
        expected: vec![1, grid * grid + 1, channels],
    };
    let [1, count, channels] = found[..] else {
        return Err(wrong_shape(0));
    };
    let side = count.isqrt();
    // A class token makes the count the successor of a square.
    let (side, class_tokens) = match count - side * side {
        0 => (side, 0),
        1 => (side, 1),
        _ => return Err(wrong_shape(channels)),
    };
    if side == 0 {
        return Err(wrong_shape(channels));
    }
    let positions = values(source, tensor)?.split_off(class_tokens * channels);
    let positions = if side == grid {
        TensorData::new(positions, [1, grid * grid, channels])
    } else {
        let device = device.clone().inner();
        let matrix = interpolation_matrix(side, grid, &device);
        let rows =
            Tensor::<2>::from_data(TensorData::new(positions, [side, side * channels]), &device);
        let rows = matrix.clone().matmul(rows).reshape([grid, side, channels]);
        let columns = matrix.unsqueeze::<3>().expand([grid, grid, side]).matmul(rows);
        columns.reshape([1, grid * grid, channels]).into_data()
    };
    let tensors = source.iter().filter(|tensor| tensor.name != NAME).cloned();
    let positions = bridge::from_data(positions, NAME.to_owned(), None);
    Ok(source.with_tensors(tensors.chain([positions]).collect()))
}
