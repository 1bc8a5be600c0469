"""The whole contract on clients of redis-py that the user brings, on a real server."""

# The order counts: the second puts its own place for the tests instead of the first one's.
from tests.contract.test_redis import *  # noqa: F403, I001 - every test of the suite
from tests.contract.test_brought import *  # noqa: F403 - on clients that users bring
