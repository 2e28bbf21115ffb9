"""The rows of benches/datasets.rs in nibabel, SimpleITK and scipy. Prints the median of ten runs in
seconds as JSON.

    python benches/datasets_python.py FILE.nii.gz SERIES
"""

import json
import statistics
import sys
import time
from importlib.metadata import version

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from scipy.ndimage import zoom

rows, columns = np.indices((512, 512))
pixels = (rows * columns % 97 / 97).astype(np.float32)


def read():
    volume = nib.load(sys.argv[1]).get_fdata(dtype=np.float32)
    assert volume.shape == (512, 512, 148)


def read_series():
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(sys.argv[2]))
    volume = sitk.GetArrayFromImage(reader.Execute()).astype(np.float32)
    assert volume.shape == (148, 512, 512)


def cubic():
    small = zoom(pixels, 224 / 512, order=3)
    assert zoom(small, 512 / 224, order=3).shape == (512, 512)


def median(run):
    times = []
    for _ in range(10):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


result = {
    "nibabel": version("nibabel"),
    "scipy": version("scipy"),
    "SimpleITK": version("SimpleITK"),
    "seconds": {
        "datasets/read_nifti_512_512_148": median(read),
        "datasets/read_dicom_512_512_148": median(read_series),
        "datasets/cubic_512_224_512": median(cubic),
    },
}
json.dump(result, sys.stdout)
