"""The unit test of the agent: in memory, with a clock that the test moves."""

import threading

import ailf
from ailf.testing import ManualClock
from ailf_memory import MemoryBackend
from researcher import Researcher


def test_a_question_is_answered() -> None:
    """The finding for a question is broadcast; a text that is no question becomes a dead letter."""
    with MemoryBackend(clock=ManualClock()) as backend:
        researcher = Researcher(backend)
        researcher.ask("no question")
        researcher.ask("Why is the sky blue?")
        with backend.pubsub().listen("findings") as findings:
            worker = threading.Thread(target=researcher.work)
            worker.start()
            message = findings.get(timeout=5)
            researcher.stop()
            worker.join(5)

        assert isinstance(message, ailf.Message)
        assert message.data == {"question": "Why is the sky blue?", "finding": "5 words long"}
        (letter,) = backend.stream("questions").group("researchers").dead_letters.list()
        assert (letter.reason, letter.error) == ("rejected", "that is not a question")


def test_a_crashed_researcher_loses_no_question() -> None:
    """When a lease ends unsettled, another consumer gets the question."""
    clock = ManualClock()
    with MemoryBackend(clock=clock) as backend:
        Researcher(backend).ask("Who is there?")
        group = backend.stream("questions").group("researchers", lease=60.0)
        first, second = group.consumer("first"), group.consumer("second")
        first.take(timeout=5)
        assert second.get(timeout=0) is None
        clock.advance(61)
        again = second.take(timeout=5)
        assert (again.data, again.attempt) == ({"question": "Who is there?"}, 2)
