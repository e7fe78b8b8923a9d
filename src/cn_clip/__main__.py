"""`python -m cn_clip VERB --flags`: the same as `cn-clip`."""

import sys

from cn_clip.cli import main

sys.exit(main())
