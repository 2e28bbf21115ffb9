"""The row of benches/metrics.rs in medpy. Prints seconds, DSC and HD95 of each organ as JSON."""

import json
import resource
import sys
import time
from importlib.metadata import version

import numpy as np
from medpy.metric.binary import dc, hd95

SHAPE = (148, 512, 512)
ORGANS = [  # centre and radii in voxels, as in benches/metrics.rs
    ((70, 260, 255), (60, 14, 14)), ((80, 200, 190), (10, 22, 18)), ((60, 290, 350), (20, 35, 30)),
    ((58, 290, 160), (20, 35, 30)), ((90, 230, 150), (30, 110, 90)), ((75, 215, 280), (10, 20, 60)),
    ((100, 290, 380), (16, 55, 35)), ((95, 190, 320), (22, 50, 55)),
]


def volume(shift):
    labels = np.zeros(SHAPE, np.uint8)
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    wave = 0.2 * np.sin(z / 5 + shift) * np.sin(y / 9) * np.sin(x / 7)
    for label, (centre, radii) in enumerate(ORGANS, 1):
        square = sum(((axis - shift - c) / r) ** 2 for axis, c, r in zip((z, y, x), centre, radii))
        labels[(square < 1 + wave) & (labels == 0)] = label
    return labels


prediction, label = volume(3.0), volume(0.0)
start = time.perf_counter()
scores = [(dc(prediction == k, label == k), hd95(prediction == k, label == k)) for k in range(1, 9)]
seconds = time.perf_counter() - start
result = {
    "medpy": version("MedPy"),
    "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000,
    "seconds": {"metrics/eight_organs_512_512_148": seconds},
    "scores": scores,
}
json.dump(result, sys.stdout)
