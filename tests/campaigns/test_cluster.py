"""The whole contract on a cluster."""

# The order counts: the second puts its own place for the tests instead of the first one's.
from tests.contract.test_redis import *  # noqa: F403, I001 - every test of the suite
from tests.contract.test_cluster import *  # noqa: F403 - on a cluster, with what it lacks and what is its own
