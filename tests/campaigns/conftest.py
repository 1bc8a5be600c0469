"""Long runs, for `make campaign`: collected only where AILF_CAMPAIGN=1 says so."""

import os

collect_ignore_glob = [] if os.environ.get("AILF_CAMPAIGN") == "1" else ["*"]
