"""``python -m ailf.cli``."""

import sys

from ailf.cli import main

sys.exit(main())
