"""Two agents that talk over channels, through the import path of earlier AILF code.

python examples/redis_pubsub_example.py --role subscriber
python examples/redis_pubsub_example.py --role publisher
"""

import argparse
import uuid

from ailf.messaging.redis import RedisClient, RedisConfig, RedisPubSub


def publisher(pubsub: RedisPubSub, text: str) -> None:
    """Send a command, wait for its answer, and print it."""
    ticket = uuid.uuid4().hex

    def handle_result(message: dict[str, str]) -> None:
        if message["ticket"] == ticket:
            print(f"publisher: the answer is {message['result']!r}")
            pubsub.stop()

    pubsub.subscribe("agent-results", handle_result)
    pubsub.publish("agent-commands", {"command": "analyze", "data": text, "ticket": ticket})
    print(f"publisher: asked to analyze {text!r}")
    pubsub.run()


def subscriber(pubsub: RedisPubSub, limit: int) -> None:
    """Answer commands, for ever or so many."""
    answered = 0

    def handle_command(message: dict[str, str]) -> None:
        nonlocal answered
        if message["command"] == "analyze":
            print(f"subscriber: analyzing {message['data']!r}")
            words = len(message["data"].split())
            pubsub.publish("agent-results", {"result": f"{words} words", "ticket": message["ticket"]})
            answered += 1
        if answered == limit:
            pubsub.stop()

    pubsub.subscribe("agent-commands", handle_command)
    print("subscriber: listening", flush=True)
    pubsub.run()


def main() -> None:
    """Play one of the two roles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--role", choices=["publisher", "subscriber"], required=True)
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=6379)
    parser.add_argument("--text", default="content to analyze")
    parser.add_argument("--limit", type=int, default=0, help="subscriber: end after so many answers (0: never)")
    chosen = parser.parse_args()
    with RedisPubSub(RedisClient(RedisConfig(host=chosen.host, port=chosen.port))) as pubsub:
        if chosen.role == "publisher":
            publisher(pubsub, chosen.text)
        else:
            subscriber(pubsub, chosen.limit)


if __name__ == "__main__":
    main()
