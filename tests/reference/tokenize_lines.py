"""Token ids of the reference's evaluation pipeline.

    python benchmarks/reference_cpu.py tests/reference/tokenize_lines.py LINES.json CONTEXT_LENGTH IDS.npy

LINES.json is a list of strings; IDS.npy is int16 [N, CONTEXT_LENGTH].
"""

import json
import sys
from pathlib import Path

import numpy as np
from cn_clip.eval.data import _preprocess_text  # type: ignore[import-not-found]

from cn_clip.clip import tokenize

source, context_length, output = sys.argv[1:]
lines = json.loads(Path(source).read_text())
ids = tokenize([_preprocess_text(line) for line in lines], context_length=int(context_length))
np.save(output, ids.numpy().astype(np.int16))
