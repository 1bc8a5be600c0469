"""The whole contract on fakeredis."""

# The order counts: the second puts its own place for the tests instead of the first one's.
from tests.contract.test_memory import *  # noqa: F403, I001 - every test of the suite
from tests.contract.test_fake import *  # noqa: F403 - on fakeredis
