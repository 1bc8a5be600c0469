"""Every test of the contract, for a module that runs the whole suite on one backend.

Write ``from contract_tests.suite import *`` and ``HARNESS = …`` into the module, and
``from contract_tests.conftest import *`` into the ``conftest.py`` of its folder.
"""

from contract_tests.backend.test_backend import *  # noqa: F403
from contract_tests.backend.test_cancel import *  # noqa: F403
from contract_tests.backend.test_close import *  # noqa: F403
from contract_tests.backend.test_flavours import *  # noqa: F403
from contract_tests.backend.test_instruments import *  # noqa: F403
from contract_tests.backend.test_opening import *  # noqa: F403
from contract_tests.listing.test_listing import *  # noqa: F403
from contract_tests.listing.test_members import *  # noqa: F403
from contract_tests.lock.test_lock import *  # noqa: F403
from contract_tests.lock.test_lock_hold import *  # noqa: F403
from contract_tests.lock.test_lock_waiting import *  # noqa: F403
from contract_tests.pubsub.test_pubsub import *  # noqa: F403
from contract_tests.pubsub.test_request import *  # noqa: F403
from contract_tests.ratelimit.test_budget_tree import *  # noqa: F403
from contract_tests.ratelimit.test_ratelimit import *  # noqa: F403
from contract_tests.ratelimit.test_ratelimit_waiting import *  # noqa: F403
from contract_tests.stream.test_batches import *  # noqa: F403
from contract_tests.stream.test_current import *  # noqa: F403
from contract_tests.stream.test_dead_letters import *  # noqa: F403
from contract_tests.stream.test_delivery import *  # noqa: F403
from contract_tests.stream.test_events import *  # noqa: F403
from contract_tests.stream.test_fair_keys import *  # noqa: F403
from contract_tests.stream.test_info import *  # noqa: F403
from contract_tests.stream.test_inspect import *  # noqa: F403
from contract_tests.stream.test_ordering import *  # noqa: F403
from contract_tests.stream.test_origins import *  # noqa: F403
from contract_tests.stream.test_partitions import *  # noqa: F403
from contract_tests.stream.test_positions import *  # noqa: F403
from contract_tests.stream.test_retention import *  # noqa: F403
from contract_tests.stream.test_scheduling import *  # noqa: F403
from contract_tests.stream.test_stream import *  # noqa: F403
from contract_tests.stream.test_takeover import *  # noqa: F403
from contract_tests.stream.test_until_idle import *  # noqa: F403
from contract_tests.stream.test_waiting import *  # noqa: F403
from contract_tests.stream.test_worker import *  # noqa: F403
