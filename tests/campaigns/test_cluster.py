"""The whole contract on a cluster."""

from contract_tests.test_backend import *  # noqa: F403 - every test of the suite
from contract_tests.test_cancel import *  # noqa: F403
from contract_tests.test_close import *  # noqa: F403
from contract_tests.test_delivery import *  # noqa: F403
from contract_tests.test_events import *  # noqa: F403
from contract_tests.test_info import *  # noqa: F403
from contract_tests.test_letters import *  # noqa: F403
from contract_tests.test_liveness import *  # noqa: F403
from contract_tests.test_lock import *  # noqa: F403
from contract_tests.test_lock_holding import *  # noqa: F403
from contract_tests.test_lock_waiting import *  # noqa: F403
from contract_tests.test_opening import *  # noqa: F403
from contract_tests.test_ordering import *  # noqa: F403
from contract_tests.test_pubsub import *  # noqa: F403
from contract_tests.test_rate_limiter import *  # noqa: F403
from contract_tests.test_rate_limiter_waiting import *  # noqa: F403
from contract_tests.test_request import *  # noqa: F403
from contract_tests.test_retention import *  # noqa: F403
from contract_tests.test_scheduling import *  # noqa: F403
from contract_tests.test_steering import *  # noqa: F403
from contract_tests.test_stream import *  # noqa: F403
from contract_tests.test_worker import *  # noqa: F403
from tests.contract.test_cluster import LACKS, new_harness, test_nobody_listens  # noqa: F401 - the suite looks for them here
