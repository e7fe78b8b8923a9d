"""Run on the reference's side (see oracle.py): what its trainer and its extractor read from lmdb/{split}."""

import hashlib
import json
import sys

from cn_clip.eval.data import EvalImgDataset
from cn_clip.training.data import LMDBDataset

for path in sys.argv[1:]:
    pairs, images = (
        LMDBDataset(path, max_txt_length=24, resolution=32),
        EvalImgDataset(f"{path}/imgs", resolution=32),
    )
    read = {
        "images": len(images),
        "gallery": [],
        "samples": pairs.number_samples,
        "train": [],
    }
    for image_id, image in (images[i] for i in range(len(images))):
        read["gallery"].append([image_id, hashlib.sha256(image.numpy().tobytes()).hexdigest()])
    for image, text, _ in (pairs[i] for i in range(len(pairs))):
        read["train"].append([text.tolist(), hashlib.sha256(image.numpy().tobytes()).hexdigest()])
    print("READ", json.dumps(read))
