"""Commands on channels: publish, subscribe, request; and list those with subscribers."""

import itertools
from collections.abc import Iterator
from typing import Annotated, Final

import typer

from ailf.checks import MAX_SECONDS
from ailf.cli.arguments import UNCHANGED, FullOption, HeaderOption, PrefixArgument, RawOption, bodies, headers_of
from ailf.cli.command import Cli, command, group
from ailf.cli.exits import USAGE, CommandError
from ailf.cli.tables import Rows, table
from ailf.cli.text import counted, duration, headers_text, message_value, payload_text
from ailf.pubsub import Message, Subscription
from ailf.values import ChannelInfo, Gap

__all__ = ["APP"]

APP: Final = group("", "")

ChannelArgument = Annotated[str, typer.Argument(metavar="CHANNEL", help="The channel's name.")]
MessagesArgument = Annotated[list[str] | None, typer.Argument(metavar="[JSON]...", help="Else each line of stdin.")]


@command(APP, "pub")
def pub(
    cli: Cli,
    channel: ChannelArgument,
    messages: MessagesArgument = None,
    *,
    header: HeaderOption = None,
    raw: RawOption = False,
) -> None:
    """Publish messages to a channel."""
    headers = headers_of(header)
    with cli.open() as backend:
        pubsub = backend.pubsub() if raw else backend.pubsub(type=UNCHANGED)
        count = 0
        with cli.progress(f"publishing to {channel}", len(messages) if messages else None) as step:
            for body in bodies(messages, backend.engine.driver.max_payload, raw=raw):
                pubsub.publish(channel, body, headers=headers)
                count += 1
                step(1)
    cli.show({"published": count}, f"published {counted(count, 'message')} to {channel!r}")


@command(APP, "sub")
def sub(
    cli: Cli,
    channels: Annotated[list[str], typer.Argument(metavar="CHANNEL...", help="The channels, or patterns.")],
    *,
    pattern: Annotated[
        bool, typer.Option("--pattern", "-p", help="The names are patterns, such as 'agents.*'.")
    ] = False,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="Stop after this number.")] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0, max=MAX_SECONDS, help="Stop after these silent seconds.")
    ] = None,
    full: FullOption = False,
) -> None:
    """Show the messages of channels as they arrive, until Ctrl-C."""
    with cli.open() as backend:
        pubsub = backend.pubsub(type=UNCHANGED)
        with pubsub.listen(*(() if pattern else channels), pattern=channels if pattern else None) as subscription:
            cli.say(f"listening to {', '.join(channels)}")
            for item in itertools.islice(_items(subscription, timeout), limit):
                _show_item(cli, item, full=full)


def _items(subscription: Subscription[bytes], timeout: float | None) -> Iterator[Message[bytes] | Gap]:
    while (item := subscription.get(timeout)) is not None:
        yield item


def _show_item(cli: Cli, item: Message[bytes] | Gap, *, full: bool) -> None:
    if isinstance(item, Gap):
        line = f"-- messages may be missing here: {item.reason}, for {duration(item.seconds)}"
        cli.show({"gap": item.reason, "seconds": item.seconds}, line)
        return
    value = {"channel": item.channel, **message_value(item.data, item.headers)}
    cli.show(value, f"{item.channel}  {payload_text(item.data, full=full)}{headers_text(item.headers)}")


@command(APP, "request")
def request(
    cli: Cli,
    channel: ChannelArgument,
    message: Annotated[str, typer.Argument(metavar="JSON", help="The request; - for the first line of stdin.")],
    *,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.001, max=MAX_SECONDS, help="Seconds to wait for the reply.")
    ] = 5.0,
    header: HeaderOption = None,
    raw: RawOption = False,
    full: FullOption = False,
) -> None:
    """Send a request to a channel, and show the reply."""
    with cli.open() as backend:
        texts = None if message == "-" else [message]
        body = next(bodies(texts, backend.engine.driver.max_payload, raw=raw), None)
        if body is None:
            raise CommandError("there is no request on stdin", USAGE)
        pubsub = backend.pubsub(type=UNCHANGED)
        with cli.working("waiting for the reply"):
            reply = pubsub.request(channel, body, timeout=timeout, headers=headers_of(header))
    cli.show(
        message_value(reply.data, reply.headers), f"{payload_text(reply.data, full=full)}{headers_text(reply.headers)}"
    )


@command(APP, "channels")
def channels(cli: Cli, prefix: PrefixArgument = "") -> None:
    """List the channels that have subscribers."""
    with cli.open() as backend:
        found = sorted(backend.pubsub().channels(prefix), key=lambda each: each.name)
    cli.show(found, channels_table(found))
    cli.note_none(found, "channel with subscribers", prefix)


def channels_table(infos: list[ChannelInfo]) -> Rows:
    """Return the table of channels."""
    return table(("CHANNEL", ">SUBSCRIBERS"), ((each.name, each.subscribers) for each in infos))
