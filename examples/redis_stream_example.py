"""A dispatcher that adds tasks and workers that share them, with the names of earlier AILF.

python examples/redis_stream_example.py --role dispatcher
python examples/redis_stream_example.py --role worker
"""

import argparse

from ailf.messaging.redis import RedisClient, RedisConfig, RedisStream


def dispatcher(stream: RedisStream, count: int) -> None:
    """Add ``count`` tasks."""
    for number in range(count):
        task = {"task_id": str(number), "type": "document_processing", "content": f"Document {number}"}
        print(f"dispatcher: task {number} is entry {stream.add(task)}")


def worker(stream: RedisStream, name: str, limit: int) -> None:
    """Process tasks: ``limit`` of them, or without end if it is 0."""
    stream.create_consumer_group("workers", name)
    done = 0

    def process_task(task: dict[str, str]) -> bool:
        nonlocal done
        if task["type"] == "document_processing":
            print(f"{name}: {task['content']} has {len(task['content'])} characters", flush=True)
        done += 1
        if done == limit:
            stream.stop()
        return True

    stream.process_messages(process_task)


def main() -> None:
    """Run the role that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--role", choices=["dispatcher", "worker"], required=True)
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=6379)
    parser.add_argument("--name", default="worker-1")
    parser.add_argument("--count", type=int, default=5, help="dispatcher: how many tasks")
    parser.add_argument("--limit", type=int, default=0, help="worker: end after this many tasks (0: never)")
    arguments = parser.parse_args()
    with RedisStream("tasks", RedisClient(RedisConfig(host=arguments.host, port=arguments.port))) as stream:
        if arguments.role == "dispatcher":
            dispatcher(stream, arguments.count)
        else:
            worker(stream, arguments.name, arguments.limit)


if __name__ == "__main__":
    main()
