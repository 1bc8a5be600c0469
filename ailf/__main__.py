"""``python -m ailf``: the command ``ailf``."""

import sys

from ailf.cli import main

sys.exit(main())
