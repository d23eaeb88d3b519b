"""``python -m mebqat_lite``: the command line, as torchrun wants it."""

import sys

from mebqat_lite.cli import main

sys.exit(main())
