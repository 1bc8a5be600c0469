"""What other designs fall into, for `make traps` and `make campaign`: collected only where either says so."""

import os

from tests.support.effort import CAMPAIGN

collect_ignore_glob = [] if CAMPAIGN or os.environ.get("AILF_TRAPS") == "1" else ["*"]
