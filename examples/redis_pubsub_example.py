"""Two agents that exchange messages over channels, with the names of earlier AILF.

python examples/redis_pubsub_example.py --role subscriber
python examples/redis_pubsub_example.py --role publisher
"""

import argparse
import uuid

from ailf.messaging.redis import RedisClient, RedisConfig, RedisPubSub


def publisher(pubsub: RedisPubSub, text: str) -> None:
    """Publish a command, wait for its result, and print it."""
    request_id = uuid.uuid4().hex

    def handle_result(message: dict[str, str]) -> None:
        if message["request_id"] == request_id:
            print(f"publisher: the answer is {message['result']!r}")
            pubsub.stop()

    pubsub.subscribe("agent-results", handle_result)
    pubsub.publish("agent-commands", {"command": "analyze", "data": text, "request_id": request_id})
    print(f"publisher: asked to analyze {text!r}")
    pubsub.run()


def subscriber(pubsub: RedisPubSub, limit: int) -> None:
    """Answer commands: ``limit`` of them, or without end if it is 0."""
    answered = 0

    def handle_command(message: dict[str, str]) -> None:
        nonlocal answered
        if message["command"] == "analyze":
            print(f"subscriber: analyzing {message['data']!r}")
            words = len(message["data"].split())
            pubsub.publish("agent-results", {"result": f"{words} words", "request_id": message["request_id"]})
            answered += 1
        if answered == limit:
            pubsub.stop()

    pubsub.subscribe("agent-commands", handle_command)
    print("subscriber: listening", flush=True)
    pubsub.run()


def main() -> None:
    """Run the role that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--role", choices=["publisher", "subscriber"], required=True)
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=6379)
    parser.add_argument("--text", default="content to analyze")
    parser.add_argument("--limit", type=int, default=0, help="subscriber: end after this many answers (0: never)")
    arguments = parser.parse_args()
    with RedisPubSub(RedisClient(RedisConfig(host=arguments.host, port=arguments.port))) as pubsub:
        if arguments.role == "publisher":
            publisher(pubsub, arguments.text)
        else:
            subscriber(pubsub, arguments.limit)


if __name__ == "__main__":
    main()
