use burn::config::Config;
use burn::module::{Initializer, Module};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Int, Tensor};
use sam_lst_sam_nn::{AdaptedLayer, BlockAdaptation, QkvOrder, linear, matrix_product};

/// The linear layers that LoRA changes.
#[derive(Config, Debug, Copy, PartialEq, Eq, Hash)]
pub enum LoraTargets {
    /// Queries and values, as in SAMed.
    QueryValue,
    /// Queries, keys, values and both layers of the MLP.
    All,
}

/// Configuration of [`BlockLora`].
#[derive(Config, Debug, PartialEq)]
pub struct BlockLoraConfig {
    /// Width `C` of the block.
    pub embed_dim: usize,
    /// Hidden width of the block's MLP.
    pub hidden_dim: usize,
    /// Rank `r`.
    pub rank: usize,
    /// The changed layers.
    pub targets: LoraTargets,
}

/// A change of a linear layer by a matrix of low rank, `B A x`, without scaling.
#[derive(Module, Debug)]
pub struct Lora {
    /// Projects to `r` values. Initialised as PyTorch's linear layers, which is SAMed's
    /// initialisation.
    pub a: Linear,
    /// Projects from `r` values. Initialised to zero, so that training starts with the unchanged
    /// layer.
    pub b: Linear,
}

/// LoRA of the linear layers of a block; `None` for unchanged layers.
#[derive(Module, Debug)]
pub struct BlockLora {
    /// Of the queries of all heads.
    pub q: Lora,
    /// Of the keys.
    pub k: Option<Lora>,
    /// Of the values.
    pub v: Lora,
    /// Of the MLP's first layer.
    pub mlp_hidden: Option<Lora>,
    /// Of the MLP's second layer.
    pub mlp_output: Option<Lora>,
}

impl BlockLoraConfig {
    /// Creates the changes, which are zero at first.
    ///
    /// # Panics
    ///
    /// If the rank is zero.
    pub fn init(&self, device: &Device) -> BlockLora {
        let Self { embed_dim, hidden_dim, .. } = *self;
        assert!(self.rank > 0, "the rank of LoRA is positive");
        let lora = |inputs, outputs| Lora {
            a: LinearConfig::new(inputs, self.rank).with_bias(false).init(device),
            b: LinearConfig::new(self.rank, outputs)
                .with_bias(false)
                .with_initializer(Initializer::Zeros)
                .init(device),
        };
        let all = self.targets == LoraTargets::All;
        BlockLora {
            q: lora(embed_dim, embed_dim),
            k: all.then(|| lora(embed_dim, embed_dim)),
            v: lora(embed_dim, embed_dim),
            mlp_hidden: all.then(|| lora(embed_dim, hidden_dim)),
            mlp_output: all.then(|| lora(hidden_dim, embed_dim)),
        }
    }
}

impl Lora {
    /// The change of the layer's output.
    ///
    /// # Shapes
    ///
    /// - input: `[N, inputs]`
    /// - output: `[N, outputs]`
    pub fn forward(&self, input: Tensor<2>) -> Tensor<2> {
        linear(&self.b, linear(&self.a, input))
    }
}

impl BlockLora {
    /// The change of queries, keys and values. The changes of all three are one product, since the
    /// matrices `B` are blocks of one matrix.
    fn qkv(&self, input: Tensor<2>, order: QkvOrder, heads: usize) -> Tensor<2> {
        let parts = [Some(&self.q), self.k.as_ref(), Some(&self.v)];
        let present = parts.iter().flatten();
        let down: Vec<_> = present.map(|lora| lora.a.weight.val()).collect(); // [C, r] each
        let [rank, width] = self.q.b.weight.dims();
        let rows = parts.iter().enumerate().filter_map(|(part, lora)| {
            let up = (*lora)?.b.weight.val(); // [r, C]
            let columns = (0..3).map(|column| match column == part {
                true => up.clone(),
                false => Tensor::zeros([rank, width], &up.device()),
            });
            Some(Tensor::cat(columns.collect(), 1)) // [r, 3 C]
        });
        let up = Tensor::cat(rows.collect(), 0);
        let up = match order {
            QkvOrder::PartMajor => up,
            QkvOrder::HeadMajor => up.select(1, head_major(width, heads, &input.device())),
        };
        matrix_product(matrix_product(input, Tensor::cat(down, 1), None), up, None)
    }
}

/// The indices in `[3, heads, d]` of the values in the order `[heads, 3, d]`.
fn head_major(width: usize, heads: usize, device: &Device) -> Tensor<1, Int> {
    let head_dim = width / heads;
    let index = |part, head, value| (part * width + head * head_dim + value) as i64;
    let indices: Vec<i64> = (0..heads)
        .flat_map(|head| (0..3).map(move |part| (head, part)))
        .flat_map(|(head, part)| (0..head_dim).map(move |value| index(part, head, value)))
        .collect();
    Tensor::from_data(indices.as_slice(), device)
}

impl BlockAdaptation for &BlockLora {
    fn linear(&self, layer: AdaptedLayer, input: &Tensor<2>, output: Tensor<2>) -> Tensor<2> {
        let lora = match layer {
            AdaptedLayer::Qkv { order, heads } => {
                return output + self.qkv(input.clone(), order, heads);
            }
            AdaptedLayer::MlpHidden => &self.mlp_hidden,
            AdaptedLayer::MlpOutput => &self.mlp_output,
        };
        match lora {
            Some(lora) => output + lora.forward(input.clone()),
            None => output,
        }
    }
}
