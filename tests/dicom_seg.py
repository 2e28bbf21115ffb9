"""Segments a DICOM series and checks the segmentations with other programs: highdicom must read the same
voxels from them as SimpleITK from the NIfTI labels, and dciodvfy must find no error.

    python tests/dicom_seg.py PROGRAM SERIES SAM LADDER

PROGRAM is the built sam-lst, SERIES the folder of a series. Needs highdicom, SimpleITK and, of Debian's
dicom3tools, dciodvfy, which does not know label maps.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import highdicom as hd
import numpy as np
import SimpleITK as sitk


def labels_of(segmentation, image):
    """The names of the segments and their voxels on the grid of an image."""
    volume = segmentation.get_volume(combine_segments=True)
    axes = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    points = volume.affine @ np.vstack([np.indices(volume.array.shape).reshape(3, -1), np.ones(volume.array.size)])
    index = np.rint(np.linalg.inv(axes) @ (points[:3] - np.array(image.GetOrigin())[:, None])).astype(int)
    numbers = np.zeros(sitk.GetArrayViewFromImage(image).shape, int)
    numbers[index[2], index[1], index[0]] = volume.array.reshape(-1)
    names = {number: segmentation.get_segment_description(number).segment_label for number in segmentation.segment_numbers}
    return {name: numbers == number for number, name in names.items()}


def main(program, series, sam, ladder):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)

        def segment(name, *options):
            model = ["--sam", sam, "--ladder", ladder]
            command = [program, "segment", series, folder / name, *model, *options, "--json"]
            return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout

        organs = {organ["organ"]: organ["label"] for organ in json.loads(segment("labels.nii.gz"))["organs"]}
        image = sitk.ReadImage(str(folder / "labels.nii.gz"))
        labels = sitk.GetArrayFromImage(image)
        for kind in ["binary", "label-map"]:
            file = folder / f"{kind}.dcm"
            segment(file.name, "--dicom-seg", kind)
            found = labels_of(hd.seg.segread(file), image)
            for name, number in organs.items():
                expected = labels == number
                assert (found.get(name, np.zeros_like(expected)) == expected).all(), f"{kind}: {name}"
            print(f"{kind}: {len(found)} segments, {(labels > 0).sum()} voxels, equal to the NIfTI labels")
            if kind == "binary":
                report = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True)
                errors = [line for line in (report.stdout + report.stderr).splitlines() if line.startswith(("Error", "Abort"))]
                assert not errors, errors
                print(f"{kind}: dciodvfy finds no error")


if __name__ == "__main__":
    main(*sys.argv[1:])
