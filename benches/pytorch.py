"""The rows of `cargo bench` in PyTorch, with segment-anything and torchvision: prints seconds as JSON.

The packages are those of tests/it/fixtures/requirements.txt.
"""

import json
import os
import statistics
import sys
import time
from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import nn
from torchvision.models import resnet18

torch.set_num_threads(os.cpu_count())
torch.manual_seed(0)


def median_seconds(run, samples=10):
    run()
    times = []
    for _ in range(samples):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


class Side(nn.Module):
    def __init__(self):
        super().__init__()
        network = resnet18()
        self.layers = nn.Sequential(
            network.conv1, network.bn1, network.relu, network.maxpool,
            network.layer1, network.layer2, network.layer3,
        )

    def forward(self, image):
        return self.layers(image)


class Ladder(nn.Module):
    """segment-anything's decoder repeats one image for many prompts; for a batch of images its parts are called here."""

    def __init__(self, classes=9, grid=32):
        super().__init__()
        self.side, self.alpha = Side(), nn.Parameter(torch.zeros(1))
        self.prompts = PromptEncoder(
            embed_dim=256, image_embedding_size=(grid, grid), input_image_size=(16 * grid, 16 * grid), mask_in_chans=16
        ).requires_grad_(False)
        self.decoder = MaskDecoder(
            num_multimask_outputs=classes - 1, transformer_dim=256,
            transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
        ).requires_grad_(False)
        self.decoder.output_upscaling.requires_grad_(True)

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


def vit_b(size):
    return ImageEncoderViT(
        img_size=size, embed_dim=768, depth=12, num_heads=12, mlp_ratio=4, out_chans=256,
        norm_layer=partial(nn.LayerNorm, eps=1e-6), qkv_bias=True, use_rel_pos=True, window_size=14,
        global_attn_indexes=[2, 5, 8, 11],
    ).eval().requires_grad_(False)


def without_gradient(function):
    def run():
        with torch.no_grad():
            function()
    return run


def main():
    image = torch.rand(4, 3, 512, 512)
    embedding = torch.rand(4, 256, 32, 32)
    foundation, ladder = vit_b(512), Ladder()
    side = ladder.side
    optimizer = torch.optim.AdamW([p for p in ladder.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.1)

    def backward(module, input):
        module.zero_grad(set_to_none=True)
        module(input).mean().backward()

    def decoder_backward():
        ladder.zero_grad(set_to_none=True)
        ladder.decode(embedding.clone().requires_grad_()).mean().backward()

    def step(embedding):
        optimizer.zero_grad(set_to_none=True)
        ladder(image, embedding).square().mean().backward()
        optimizer.step()

    def full_step():
        with torch.no_grad():
            embedding = foundation(image)
        step(embedding)

    def side_forward():
        side.eval()
        side(image)
        side.train()

    rows = {
        "encoder/vit_b_512_b1": without_gradient(lambda: foundation(image[:1])),
        "side/forward_b4": without_gradient(side_forward),
        "side/forward_backward_b4": lambda: backward(side, image),
        "decoder/forward_b4": without_gradient(lambda: ladder.decode(embedding)),
        "decoder/forward_backward_b4": decoder_backward,
        "step/cached_b4": lambda: step(embedding),
        "step/full_b4": full_step,
    }
    wanted = sys.argv[1:]
    measured = {
        name: median_seconds(run) for name, run in rows.items() if not wanted or any(w in name for w in wanted)
    }
    json.dump({"torch": torch.__version__, "threads": torch.get_num_threads(), "seconds": measured}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
