"""How far PyTorch is from itself on a tiny ladder when the factors of products are rounded to TF32, as CUDA's matrix units do.

    python tests/tf32.py

The tolerances that tests/it/backends.rs grants CUDA are a little more than twice these figures. Needs no GPU: before each product,
forward and backward, its factors lose all but ten bits of their fractions, to the nearest or, as where a kernel loads 32 bits and
the unit ignores the lower ones, towards zero. Needs the packages of tests/it/fixtures/requirements.txt.
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
    """Rounds the factors of every product, those of the backward pass too."""

    FACTORS = {
        "mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2), "convolution": (0, 1), "convolution_backward": (0, 1, 2),
    }  # fmt: skip

    def __init__(self, rounding):
        super().__init__()
        self.rounding, self.products = rounding, 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        arguments = list(arguments)
        for place in self.FACTORS.get(function.overloadpacket.__name__, ()):
            arguments[place] = self.rounding(arguments[place])
            self.products += 1
        return function(*arguments, **(options or {}))


def step(mode, sam, network, decoder, alpha):
    """Embedding, logits and losses as in tests/it/backends.rs; leaves gradients."""
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
    """The losses of three steps, and by how much they changed what trains."""
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


def of_largest(ours, theirs, scale=None):
    return ((ours - theirs).abs().max() / (theirs if scale is None else scale).abs().max()).item()


def of_norm(ours, theirs, scale=None):
    return ((ours - theirs).norm() / (theirs if scale is None else scale).norm()).item()


TITLES = {of_largest: "of the largest value", of_norm: "of the norm"}


def as_one(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def tell(what, errors):
    name = max(errors, key=errors.get)
    median = sorted(errors.values())[len(errors) // 2]
    print(f"  {what:<67} at most {errors[name]:.1e} ({name}), median {median:.1e}")


exact, exact_training = forward_and_gradients(nullcontext()), training(nullcontext())
for rounding in (to_nearest, towards_zero):
    mode = Rounded(rounding)
    (forward, gradients), (losses, changes) = forward_and_gradients(mode), training(mode)
    assert mode.products > 1000 and gradients.keys() == exact[1].keys()
    print(f"{rounding.__name__}, {torch.__version__}")
    tell("of the largest value: forward", {name: of_largest(value, exact[0][name]) for name, value in forward.items()})
    of_each = {}
    for name, gradient in gradients.items():
        # A key's bias has a gradient of zero but for rounding.
        of_each[name] = gradient, exact[1][name], exact[1][name.replace("k_proj.bias", "k_proj.weight")]
    for measure in (of_largest, of_norm):
        errors = {name: measure(*tensors) for name, tensors in of_each.items()}
        tell(f"{TITLES[measure]}: gradients, the whole decoder training", errors)
    tell("losses of three steps", {step: of_largest(loss, exact_training[0][step]) for step, loss in enumerate(losses)})
    tell("of the norm: changes by three steps", {name: of_norm(change, exact_training[1][name]) for name, change in changes.items()})
    tell("of the norm: changes by three steps, as one", {"all": of_norm(as_one(changes), as_one(exact_training[1]))})
