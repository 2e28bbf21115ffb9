"""The ladder in PyTorch for batches of images, with modules of segment-anything and torchvision.

segment-anything's own decoder repeats one image for many prompts, so its modules are called instead.
"""

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import nn


class Side(nn.Module):
    """A torchvision ResNet up to `layer3`."""

    def __init__(self, network):
        super().__init__()
        self.layers = nn.Sequential(
            network.conv1, network.bn1, network.relu, network.maxpool,
            network.layer1, network.layer2, network.layer3,
        )  # fmt: skip

    def forward(self, image):
        return self.layers(image)


class PyramidSide(nn.Module):
    """A torchvision ResNet up to `layer3`, whose layers are summed at the size of the first."""

    def __init__(self, network, width=256):
        super().__init__()
        self.stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        self.layers = nn.ModuleList([network.layer1, network.layer2, network.layer3])
        self.laterals = nn.ModuleList([nn.Conv2d(channels, width, 1) for channels in (64, 128, 256)])

    def forward(self, image):
        features, total = self.stem(image), 0
        for layer, lateral in zip(self.layers, self.laterals):
            features = layer(features)
            size = features.shape[2:] if isinstance(total, int) else total.shape[2:]
            total = total + F.interpolate(lateral(features), size, mode="bilinear", align_corners=False)
        return total


class Ladder(nn.Module):
    def __init__(
        self, network, classes=9, grid=32, width=256, mlp_dim=2048, heads=8, iou_hidden_dim=256, pyramid=False
    ):
        super().__init__()
        self.side = PyramidSide(network, width) if pyramid else Side(network)
        self.alpha = nn.Parameter(torch.zeros(1))
        self.prompts = PromptEncoder(
            embed_dim=width, image_embedding_size=(grid, grid), input_image_size=(16 * grid, 16 * grid), mask_in_chans=16
        )
        self.decoder = MaskDecoder(
            num_multimask_outputs=classes - 1, transformer_dim=width, iou_head_hidden_dim=iou_hidden_dim,
            transformer=TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=mlp_dim, num_heads=heads),
        )  # fmt: skip

    def decode(self, embedding):
        batch, width, grid, _ = embedding.shape
        decoder = self.decoder
        tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(batch, -1, -1)
        image = embedding + self.prompts.no_mask_embed.weight.reshape(1, -1, 1, 1)
        positions = self.prompts.get_dense_pe().expand(batch, -1, -1, -1)
        tokens, image = decoder.transformer(image, positions, tokens)
        upscaled = decoder.output_upscaling(image.transpose(1, 2).reshape(batch, width, grid, grid))
        weights = torch.stack([head(tokens[:, 1 + i]) for i, head in enumerate(decoder.output_hypernetworks_mlps)], 1)
        return (weights @ upscaled.flatten(2)).view(batch, -1, *upscaled.shape[2:])

    def forward(self, image, embedding):
        gate = torch.sigmoid(self.alpha)
        return self.decode(gate * embedding + (1 - gate) * self.side(image))
