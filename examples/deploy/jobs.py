"""The app that the files in this folder deploy: ``ailf run jobs:app``, with the backend's URL in ``AILF_URL``."""

import ailf

app = ailf.App()


@app.handler("tasks", group="workers", concurrency=8, retention=ailf.Retention.settled())
async def handle(delivery: ailf.AsyncDelivery[dict[str, str]]) -> None:
    """Handle a task, and publish its result."""
    await app.backend.pubsub().publish("results", {"task": delivery.id})


@app.cron("0 3 * * *")
async def nightly() -> None:
    """Do something at three o'clock, once over all replicas."""
    print("it is three o'clock")
