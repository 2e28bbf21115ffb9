"""Compares ViT-B and ResNet18 at their published sizes with PyTorch's, and measures the memory that loading takes.

    python tests/full_size.py [FOLDER]

Makes random checkpoints of official form in FOLDER (a temporary one without it; 470 MB), lets segment-anything and
torchvision embed random images, and runs the ignored tests of tests/it/full_size.rs on both. Needs the packages of
tests/it/fixtures/requirements.txt.
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


def make(folder):
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
        side = network(cases["image_512"])  # `forward` flattens at its end
        cases["side_512"] = side.reshape(1, 256, 32, 32)
    save_file(cases, folder / "cases.safetensors")


def run(folder):
    tests = "loading_takes_little_more_memory_than_the_file", "vit_b_and_the_whole_model", "vit_b_in_half_precision"
    for test in tests:  # one process each: the peak memory is the process's
        subprocess.run(
            ["cargo", "test", "--workspace", "--test", "it", f"full_size::{test}", "--", "--ignored", "--exact", "--nocapture"],
            cwd=here, env=os.environ | {"SAM_LST_FULL_SIZE": str(folder)}, check=True,
        )


if len(sys.argv) > 1:
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    make(folder)
    run(folder)
else:
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        run(Path(folder))
