"""The agent in production: AILF_URL=redis://localhost:6379/0 python examples/injection/program.py."""

import ailf
from researcher import Researcher


def main() -> None:
    """Add one question, and work until Ctrl-C."""
    with ailf.connect() as backend:
        researcher = Researcher(backend)
        researcher.ask("What does a lease promise?")
        print(f"working on {backend.url}; Ctrl-C ends it", flush=True)
        researcher.work()


if __name__ == "__main__":
    main()
