"""An agent with an injected backend: it names no broker, so a program and its tests can use different ones."""

import ailf


class Researcher:
    """Takes questions from a stream and broadcasts findings.

    Arguments:
        backend: The backend of the questions and findings.
    """

    def __init__(self, backend: ailf.Backend) -> None:
        self._findings = backend.pubsub()
        self._questions = backend.stream("questions", retention=ailf.Retention.settled())
        self._group = self._questions.group("researchers", lease=60.0, max_deliveries=3)

    def ask(self, question: str) -> None:
        """Add a question."""
        self._questions.add({"question": question})

    def work(self) -> None:
        """Answer questions until `stop`, SIGTERM or Ctrl-C."""
        self._group.process(self._answer)

    def stop(self) -> None:
        """Finish the current question, and stop."""
        self._group.stop()

    def _answer(self, delivery: ailf.Delivery[dict[str, str]]) -> None:
        question = delivery.data["question"]
        if not question.endswith("?"):
            raise ailf.Reject("that is not a question")
        self._findings.publish("findings", {"question": question, "finding": f"{len(question.split())} words long"})
