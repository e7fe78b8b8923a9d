"""Time of `import cn_clip` and `cn-clip --help`, each in a fresh process.

python benchmarks/start.py [--rounds 11]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from peers import machine

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import cn_clip": [sys.executable, "-c", "import cn_clip"],
    "cn-clip --help": [sys.executable, "-m", "cn_clip", "--help"],
    "cn-clip topk --help": [sys.executable, "-m", "cn_clip", "topk", "--help"],
}


def main() -> None:
    """Median seconds of each command, in interleaved rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for i in range(args.rounds + 1):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if i:
                seconds[name].append(time.perf_counter() - start)
    print(machine())
    for name, took in seconds.items():
        print(f"{name:22}{statistics.median(took):7.3f} s")


if __name__ == "__main__":
    sys.exit(main())
