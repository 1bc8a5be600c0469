"""The streams of the memory backend agree with the model, step by step."""

from hypothesis.stateful import run_state_machine_as_test

from tests.models.side import MemorySide, PartitionedSide, Times
from tests.models.stream_machine import Machine
from tests.support.effort import SLOW, examples

TIMES = Times(
    tick=5.0,
    lease=40.0,
    alive=20.0,
    delays=(0.0, 5.0, 15.0),
    extensions=(5.0, 15.0, 60.0),
    waits=(5.0, 20.0, 60.0),
    windows=(5.0, 20.0, 60.0),
    ages=(None, None, 20.0),
    passing=(5.0, 10.0, 40.0),
)
"""Round numbers, so that events often fall on the same time, or exactly on the end of a lease or window."""


@SLOW
def test_memory_does_what_the_model_does() -> None:
    """Each step has the model's result, and the stream and its groups have the model's state after it."""
    run_state_machine_as_test(
        lambda: Machine(TIMES, [MemorySide()]),
        settings=examples(150, stateful_step_count=50),
    )


@SLOW
def test_a_partitioned_stream_does_what_the_model_does() -> None:
    """So does a partitioned stream, all of whose messages go to one partition."""
    run_state_machine_as_test(
        lambda: Machine(TIMES, [PartitionedSide()]),
        settings=examples(75, stateful_step_count=50),
    )
