"""Compares ViT-B and ResNet18 at their published sizes with PyTorch, and measures the memory that
loading needs.

    python tests/full_size.py [FOLDER]

Creates random checkpoints in the official format in FOLDER (470 MB; a temporary folder without it),
embeds random images with segment-anything and torchvision, and runs the ignored tests of
tests/it/full_size.rs on both. Needs the packages of tests/it/fixtures/requirements.txt.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from segment_anything import sam_model_registry
from torchvision.models import resnet18

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here / "it" / "fixtures"))
from common import encode, randomise


def create(folder):
    sam = sam_model_registry["vit_b"]().eval()
    randomise(sam, 1)
    torch.save(sam.state_dict(), folder / "sam_vit_b_random.pth")
    network = resnet18().eval()
    randomise(network, 2)
    torch.save(network.state_dict(), folder / "resnet18_random.pth")
    cases = {}
    with torch.no_grad():
        for size in (512, 1024):
            image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(size))
            cases[f"image_{size}"], cases[f"embedding_{size}"] = image, encode(sam.image_encoder, image).contiguous()
        network.layer4 = network.avgpool = network.fc = torch.nn.Identity()
        side = network(cases["image_512"])  # flattened by `forward`
        cases["side_512"] = side.reshape(1, 256, 32, 32)
    save_file(cases, folder / "cases.safetensors")


def run(folder):
    tests = (
        "loading_needs_little_more_memory_than_the_file_size",
        "vit_b_and_resnet18_equal_pytorchs",
        "vit_b_in_half_precision_is_close_to_pytorchs",
    )
    for test in tests:  # in a process each, because peak memory is that of a process
        subprocess.run(
            ["cargo", "test", "-p", "sam-lst", "--test", "it", f"full_size::{test}", "--", "--ignored", "--exact", "--nocapture"],
            cwd=here, env=os.environ | {"SAM_LST_FULL_SIZE": str(folder)}, check=True,
        )


if len(sys.argv) > 1:
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    create(folder)
    run(folder)
else:
    with tempfile.TemporaryDirectory() as folder:
        create(Path(folder))
        run(Path(folder))
