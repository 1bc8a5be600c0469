"""Traps in which other designs fail, for `make traps` and `make campaign`: collected only in these runs."""

import os

from tests.support.effort import CAMPAIGN

collect_ignore_glob = [] if CAMPAIGN or os.environ.get("AILF_TRAPS") == "1" else ["*"]
