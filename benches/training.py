"""Trains the demo's model on synthetic phantoms with sam-lst and in PyTorch, and prints the time of
both and the DSC of the test phantoms.

    python benches/training.py [--seeds N]
    python benches/training.py --device cuda:0 --features cuda [--compile] [--tf32] [--precision bf16]

PyTorch runs segment-anything's and torchvision's modules as the method was published, with the
frozen encoder in each step. Both start from the same random SAM, each with its own random side
network, and see the same slices in views of the same distribution. The weights after the last step
are scored, both by `sam-lst evaluate`. sam-lst validates four times during training, PyTorch never.

Needs the packages of tests/it/fixtures/requirements.txt, and an otherwise idle machine.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from scipy.ndimage import rotate
from torch import nn
from torch.utils.data import DataLoader, Dataset

from program import mean_dsc, root, run_sam_lst, run_summary, write_config

sys.path.insert(0, str(root / "tests/it/fixtures"))
from common import encode, loss_parts, rate, resnet_tiny, sam_tiny
from ladder_pytorch import Ladder

# As in `TrainingConfig::demo`.
CLASSES, SIZE, EPOCHS, BATCH, RATE, WARMUP, DICE_WEIGHT = 9, 256, 16, 8, 3e-3, 20, 0.8
GRID = SIZE // 16
# Synapse's labels, in the order of classes.
LABELS = np.array([0, 1, 2, 3, 4, 6, 7, 8, 11])
WINDOW = -125, 275
ROW = "{:>11.1f} {:>12.1f} {:>6.2f} {:>16.2f} {:>16.2f}"


class Slices(Dataset):
    """Slices in random views, with the distribution of the released code."""

    def __init__(self, data, cases):
        classes = np.zeros(256, np.int64)
        classes[LABELS] = np.arange(CLASSES)
        images, labels = zip(*(read(data, case) for case in cases))
        self.images, self.labels = np.concatenate(images), classes[np.concatenate(labels).astype(np.uint8)]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image, label = self.images[index], self.labels[index]
        if torch.rand(()) < 0.5:
            turns, axis = int(torch.randint(4, ())), int(torch.randint(2, ()))
            image, label = (np.flip(np.rot90(pixels, turns), axis) for pixels in (image, label))
        elif torch.rand(()) < 0.5:
            angle = int(torch.randint(-20, 20, ()))
            image, label = (rotate(pixels, angle, order=0, reshape=False) for pixels in (image, label))
        label = torch.from_numpy(label.copy())[None, None].float()
        for size in (SIZE, 4 * GRID):
            label = F.interpolate(label, (size, size), mode="nearest-exact")
        return resized(image), label[0, 0].long()


def read(data, case):
    """Image in [0, 1] and labels, as [slices, rows, columns]."""
    image, label = (
        np.asarray(nib.load(data / kind / f"{name}{case}.nii.gz").dataobj).transpose(2, 1, 0)
        for kind, name in (("img", "img"), ("label", "label"))
    )
    low, high = WINDOW
    return ((np.clip(image, low, high) - low) / (high - low)).astype(np.float32), label


def resized(image):
    """The network's input."""
    image = torch.from_numpy(image.copy())[None, None]
    return F.interpolate(image, (SIZE, SIZE), mode="bicubic", align_corners=False)[0].expand(3, -1, -1)


def model(checkpoint, device):
    """The frozen encoder and the ladder: the checkpoint's SAM, and a side network initialised as by
    torchvision.
    """
    network = resnet_tiny()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    encoder = sam_tiny().image_encoder
    width = encoder.neck[0].out_channels
    ladder = Ladder(network, CLASSES, GRID, width, mlp_dim=128, heads=4, iou_hidden_dim=32)
    state = load_file(checkpoint)
    for prefix, module in (("image_encoder.", encoder), ("prompt_encoder.", ladder.prompts), ("mask_decoder.", ladder.decoder)):
        module.load_state_dict({name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)})
    ladder.prompts.requires_grad_(False)
    ladder.decoder.iou_prediction_head.requires_grad_(False)
    return encoder.requires_grad_(False).to(device), ladder.to(device)


def embedder(encoder, device):
    precision = {"f16": torch.float16, "bf16": torch.bfloat16}.get(options.precision)

    def embed(image):
        with torch.no_grad(), torch.autocast(device, precision) if precision else nullcontext():
            return encode(encoder, image).float()

    return torch.compile(embed) if options.compile else embed


def train_in_pytorch(data, cases, checkpoint, device):
    """Seconds, and a function that predicts the labels of a slice."""
    start = time.perf_counter()
    slices = Slices(data, cases)
    loader = DataLoader(slices, BATCH, shuffle=True, num_workers=2, persistent_workers=True)
    encoder, ladder = model(checkpoint, device)
    embed = embedder(encoder, device)
    forward = torch.compile(ladder) if options.compile else ladder
    optimizer = torch.optim.AdamW([p for p in ladder.parameters() if p.requires_grad], betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    step, steps = 0, EPOCHS * len(loader)
    for _ in range(EPOCHS):
        for image, label in loader:
            image, label = image.to(device), label.to(device)
            cross_entropy, dice = loss_parts(forward(image, embed(image)), label)
            loss = (1 - DICE_WEIGHT) * cross_entropy + DICE_WEIGHT * dice
            for group in optimizer.param_groups:
                group["lr"] = RATE * rate(step, WARMUP, steps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            assert loss.isfinite(), f"step {step}"
            step += 1
    seconds = time.perf_counter() - start
    ladder.eval()

    def predict(image):
        with torch.no_grad():
            batch = resized(image)[None].to(device)
            logits = F.interpolate(forward(batch, embed(batch)), (SIZE, SIZE), mode="bilinear", align_corners=False)
            classes = F.interpolate(logits.argmax(1)[None].float(), image.shape, mode="nearest-exact")
            return LABELS[classes[0, 0].long().cpu().numpy()]

    return seconds, predict


def sam_lst(*arguments):
    run_sam_lst(*arguments, features=options.features, program=options.program)


def score(folder, *arguments):
    """Mean DSC in percent."""
    output = ["--protocol", "strict", "--output", folder / "scores", "--force"]
    sam_lst("evaluate", *arguments, *output)
    return mean_dsc(json.loads((folder / "scores-strict.json").read_text()))


def compare(folder, seed, device):
    """Seconds and DSC of sam-lst and of PyTorch."""
    run, config = folder / f"run{seed}", write_config(folder, seed, options.precision)
    cache = folder / f"cache{seed}"  # empty
    sam_lst("demo", "--plain", "--device", options.device, "--config", config, "--run", run, "--cache", cache)
    seconds = run_summary(run)["seconds"]
    checkpoint, phantoms = run / "foundation.safetensors", cache / "phantoms"
    trained = ["--sam", checkpoint, "--ladder", run / "ladder.safetensors", "--precision", options.precision]
    dsc = score(folder, "--data", phantoms, *trained, "--device", options.device)

    torch.manual_seed(seed)
    data = phantoms / "RawData/Training"
    # Lines such as "training: 0005 <SHA-256 of its files>".
    lines = (run / "cases.txt").read_text().splitlines()
    cases = [line.split()[1] for line in lines if line.startswith("training: ")]
    pytorch_seconds, predict = train_in_pytorch(data, cases, checkpoint, device)
    predictions = folder / f"predictions{seed}"
    predictions.mkdir()
    test_cases = [case["case"] for case in json.loads((folder / "scores-strict.json").read_text())["cases"]]
    for case in test_cases:
        image, _ = read(data, case)
        labels = np.stack([predict(pixels) for pixels in image]).astype(np.uint8)
        affine = nib.load(data / "img" / f"img{case}.nii.gz").affine
        nib.save(nib.Nifti1Image(labels.transpose(2, 1, 0), affine), predictions / f"label{case}.nii.gz")
    pytorch_dsc = score(folder, "--dataset", "synapse", "--pred", predictions, "--label", data / "label")
    return seconds, dsc, pytorch_seconds, pytorch_dsc


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--seeds", type=int, default=3)
parser.add_argument("--device", default="cpu", help="sam-lst's, as `sam-lst devices` names it; PyTorch uses CUDA unless it is cpu")
parser.add_argument("--features", default="", help="features of sam-lst-cli, such as cuda")
parser.add_argument("--program", help="the built program sam-lst, on a machine without cargo")
parser.add_argument("--precision", default="f32", choices=["f32", "f16", "bf16"], help="precision of the foundation")
parser.add_argument("--compile", action="store_true", help="use torch.compile")
parser.add_argument("--tf32", action="store_true", help="let PyTorch round products of 32-bit values to TF32")
options = parser.parse_args()


def main():
    device = "cpu" if options.device == "cpu" else "cuda"
    torch.set_num_threads(os.cpu_count())
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32
    print(f"{options.device}, foundation in {options.precision}, PyTorch {torch.__version__}")
    print(f"{'seed':>4} {'sam-lst [s]':>11} {'PyTorch [s]':>12} {'ratio':>6} {'sam-lst DSC [%]':>16} {'PyTorch DSC [%]':>16}")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            seconds, dsc, pytorch_seconds, pytorch_dsc = compare(Path(folder), seed, device)
            row = (seconds, pytorch_seconds, seconds / pytorch_seconds, dsc, pytorch_dsc)
            results.append(row)
            print(f"{seed:>4} " + ROW.format(*row), flush=True)
    means = [statistics.mean(column) for column in zip(*results)]
    print("mean " + ROW.format(*means))


if __name__ == "__main__":
    main()
