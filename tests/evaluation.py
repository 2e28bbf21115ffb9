"""Scores modified copies of real labels with `sam-lst evaluate` and with medpy, and compares them.

    python tests/evaluation.py SYNAPSE_DIR

SYNAPSE_DIR contains `RawData/Training/label`. Needs the packages of
tests/it/fixtures/requirements.txt.
"""

import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from medpy.metric.binary import asd, dc, hd95
from scipy.ndimage import binary_dilation, binary_erosion

repository = Path(__file__).resolve().parents[1]
labels = Path(sys.argv[1]) / "RawData/Training/label"
ORGANS = {"spleen": 1, "right kidney": 2, "left kidney": 3, "gallbladder": 4, "liver": 6, "stomach": 7, "aorta": 8,
          "pancreas": 11}
ORDER = ["aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach"]


def modify(label, case):
    """Moves, erodes and dilates organs; adds false negatives and false positives."""
    modified = np.roll(label, (2, -1, case % 2), (0, 1, 2))
    modified[binary_dilation(label == 8, iterations=2)] = 8
    modified[(label == 1) & ~binary_erosion(label == 1)] = 0
    if case % 2:
        modified[modified == 4] = 0
    else:
        modified[:2, :3, :4] = 2
    return modified


def medpy_scores(prediction, label):
    """DSC, HD95 and ASD, with the published scripts' convention for absent organs."""
    if prediction.any() and label.any():
        return dc(prediction, label), hd95(prediction, label), asd(prediction, label)
    return (1, 0, None) if prediction.any() else (0, 0, None)


with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    (folder / "predictions").mkdir()
    expected = {}
    for i, file in enumerate(sorted(labels.glob("*.nii.gz"))):
        source = nib.load(file)
        label = np.asarray(source.dataobj)
        prediction = modify(label, i).astype(np.uint8)
        name = file.name.removesuffix(".nii.gz")
        # Half of the predictions have another name and another order of axes.
        image = nib.Nifti1Image(prediction, source.affine, source.header if i % 2 else None)
        if i % 2:
            image = image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
            name_of_prediction = f"case{name.removeprefix('label')}_prediction"
        else:
            name_of_prediction = name
        nib.save(image, folder / "predictions" / f"{name_of_prediction}.nii.gz")
        for organ, value in ORGANS.items():
            expected[name, organ] = medpy_scores(prediction == value, label == value)
    command = ["cargo", "run", "--release", "-p", "sam-lst-cli", "--", "evaluate"]
    options = ["--pred", folder / "predictions", "--label", labels, "--output", folder / "report"]
    subprocess.run([*command, *options], cwd=repository, check=True)
    rows = list(csv.DictReader(open(folder / "report-reference.csv")))
    assert [row["organ"] for row in rows[:8]] == ORDER
    assert len(rows) == len(expected) > 0
    largest = 0.0
    for row in rows:
        scores = (row["dsc"], row["hd95_voxels"], row["asd_voxels"])
        for score, medpy_score in zip(scores, expected[row["case"], row["organ"]]):
            assert (score == "") == (medpy_score is None), row
            if medpy_score is not None:
                largest = max(largest, abs(float(score) - medpy_score))
    print(f"{len(rows)} organs of {len(rows) // 8} cases: largest difference from medpy {largest:.1e}")
    assert largest <= 1e-6
