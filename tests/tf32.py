"""Measures the effect of TF32 on a tiny ladder in PyTorch: the differences that arise when the
factors of products are rounded to TF32, as CUDA's tensor cores do.

    python tests/tf32.py

The tolerances for CUDA in tests/it/backends.rs are slightly more than twice these differences. Needs
no GPU: before each product, forward and backward, the fractions of its factors are rounded to ten
bits, to nearest or towards zero. Rounding towards zero occurs where a kernel loads 32 bits and the
tensor core ignores the lower ones. Needs the packages of tests/it/fixtures/requirements.txt.
"""

import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parent / "it" / "fixtures"))
from common import decode, encode, ladder_tiny, loss_parts, side

CLASSES, SIZE, STEPS = 9, 64, 3
DROPPED_BITS = 13


def towards_zero(tensor):
    bits = tensor.contiguous().view(torch.int32)
    return (bits >> DROPPED_BITS << DROPPED_BITS).view(torch.float32)


def to_nearest(tensor):
    bits = tensor.contiguous().view(torch.int32)
    return towards_zero((bits + (1 << DROPPED_BITS - 1)).view(torch.float32))


class Rounded(TorchDispatchMode):
    """Rounds the factors of every product, also in the backward pass."""

    FACTORS = {
        "mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2), "convolution": (0, 1), "convolution_backward": (0, 1, 2),
    }  # fmt: skip

    def __init__(self, rounding):
        super().__init__()
        self.rounding, self.products = rounding, 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        arguments = list(arguments)
        for position in self.FACTORS.get(function.overloadpacket.__name__, ()):
            arguments[position] = self.rounding(arguments[position])
            self.products += 1
        return function(*arguments, **(options or {}))


def step(mode, sam, network, decoder, alpha):
    """Embedding, logits and losses of a step, as in tests/it/backends.rs. Sets gradients."""
    generator = torch.Generator().manual_seed(5)
    image = torch.rand(2, 3, SIZE, SIZE, generator=generator)
    size = SIZE // 4
    labels = [i // 7 % 13 * (i // size % 5) % 9 for i in range(2 * size * size)]
    with mode:
        with torch.no_grad():
            embedding = encode(sam.image_encoder, image)
        gate = torch.sigmoid(alpha)
        logits = decode(sam, decoder, gate * embedding + (1 - gate) * side(network, image))
        cross_entropy, dice = loss_parts(logits, torch.tensor(labels).reshape(2, size, size))
        loss = 0.2 * cross_entropy + 0.8 * dice
        loss.backward()
    return {"embedding": embedding, "logits": logits, "loss": loss, "cross entropy": cross_entropy, "dice": dice}


def model():
    sam, network, decoder = ladder_tiny(CLASSES)
    network.train()
    alpha = nn.Parameter(torch.tensor([0.3]))
    named = {"gate.alpha": alpha}
    named |= {f"side.{name}": parameter for name, parameter in network.named_parameters()}
    return sam, network, decoder, alpha, named


def forward_and_gradients(mode):
    sam, network, decoder, alpha, named = model()
    forward = step(mode, sam, network, decoder, alpha)
    forward |= {name: state for name, state in network.state_dict().items() if name in STATISTICS}
    named |= {f"mask_decoder.{name}": parameter for name, parameter in decoder.named_parameters()}
    gradients = {name: parameter.grad for name, parameter in named.items() if parameter.grad is not None}
    return forward, gradients


def training(mode):
    """The losses of three steps, and the changes of the trained tensors."""
    sam, network, decoder, alpha, named = model()
    named |= {f"upscaling.{name}": parameter for name, parameter in decoder.output_upscaling.named_parameters()}
    named = {name: parameter for name, parameter in named.items() if not name.startswith(("side.layer4.", "side.fc."))}
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    optimizer = torch.optim.AdamW(named.values(), lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        losses.append(step(mode, sam, network, decoder, alpha)["loss"])
        optimizer.step()
    return torch.stack(losses), {name: parameter.detach() - before[name] for name, parameter in named.items()}


STATISTICS = ("bn1.running_mean", "bn1.running_var", "layer3.1.bn2.running_mean", "layer3.1.bn2.running_var")


def largest_error(actual, expected, scale=None):
    return ((actual - expected).abs().max() / (expected if scale is None else scale).abs().max()).item()


def norm_error(actual, expected, scale=None):
    return ((actual - expected).norm() / (expected if scale is None else scale).norm()).item()


TITLES = {largest_error: "relative to the largest value", norm_error: "relative to the norm"}


def concatenated(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def print_errors(title, errors):
    name = max(errors, key=errors.get)
    median = sorted(errors.values())[len(errors) // 2]
    print(f"  {title:<67} at most {errors[name]:.1e} ({name}), median {median:.1e}")


exact, exact_training = forward_and_gradients(nullcontext()), training(nullcontext())
for rounding in (to_nearest, towards_zero):
    mode = Rounded(rounding)
    (forward, gradients), (losses, changes) = forward_and_gradients(mode), training(mode)
    assert mode.products > 1000 and gradients.keys() == exact[1].keys()
    print(f"{rounding.__name__}, {torch.__version__}")
    print_errors("relative to the largest value: forward", {name: largest_error(value, exact[0][name]) for name, value in forward.items()})
    pairs = {}
    for name, gradient in gradients.items():
        # The gradient of a key's bias is zero except for rounding.
        pairs[name] = gradient, exact[1][name], exact[1][name.replace("k_proj.bias", "k_proj.weight")]
    for measure in (largest_error, norm_error):
        errors = {name: measure(*tensors) for name, tensors in pairs.items()}
        print_errors(f"{TITLES[measure]}: gradients, whole decoder trained", errors)
    print_errors("losses of three steps", {step: largest_error(loss, exact_training[0][step]) for step, loss in enumerate(losses)})
    print_errors("relative to the norm: changes by three steps", {name: norm_error(change, exact_training[1][name]) for name, change in changes.items()})
    errors = {"all": norm_error(concatenated(changes), concatenated(exact_training[1]))}
    print_errors("relative to the norm: changes by three steps, all tensors together", errors)
