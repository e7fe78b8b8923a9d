"""The reference's image transform of every file in a folder.

    python benchmarks/reference_cpu.py tests/reference/transform_images.py FOLDER SIZES OUTPUT.npz

SIZES is comma-separated; OUTPUT.npz holds `<file name> <size>`: float32 [3, size, size].
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from cn_clip.clip import image_transform

folder, sizes, output = sys.argv[1:]
found = {}
for size in map(int, sizes.split(",")):
    transform = image_transform(size)
    for path in sorted(Path(folder).iterdir()):
        found[f"{path.name} {size}"] = transform(Image.open(path)).numpy()
np.savez(output, **found)
