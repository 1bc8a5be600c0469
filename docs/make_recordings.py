"""Make the recordings and pictures of ``cli.md`` anew: ``python docs/make_recordings.py``.

It starts a server, lets a crew work on it, and runs each command on a terminal. What the command wrote becomes the text
between the marks of that name, and for two of them a picture.
"""

import os
import pty
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import ailf  # noqa: E402
from tests.support import binaries  # noqa: E402
from tests.support.servers import Server  # noqa: E402

PAGE = ROOT / "docs" / "cli.md"
IMAGES = ROOT / "docs" / "images"
SHOWN = "redis://localhost:6379/0"
WIDTH = 112
SCREEN_END = "\x1b[?1049l"

RECORDINGS = {
    "doctor": ["doctor"],
    "bench": ["bench --seconds 1"],
    "top": ["top --count 2"],
    "streams": ["streams", "groups pages", "consumers pages fetchers"],
    "info": ["info pages fetchers"],
    "read": ["read mails --limit 2", "read mails --limit 1 --json"],
    "why": ["why lock reindex", "why limit openai gpt --limit 10/minute --cost 9", "why message mails MAIL"],
    "dead": ["dead ls mails senders", "dead show mails senders LETTER", "dead redrive mails senders LETTER --yes"],
    "locks": ["locks ls", "locks inspect reindex"],
    "limits": ["limits ls", "limits peek openai gpt --limit 10/minute"],
}
PICTURES = ("doctor", "top")


def main() -> None:
    """Record everything, and write the page and the pictures."""
    binary = list(binaries.found().items())[-1]
    with Server.start(binary[1], "--maxmemory", "64mb", version=binary[0]) as server, crew(server.url) as names:
        time.sleep(2)
        page = PAGE.read_text()
        for name, commands in RECORDINGS.items():
            filled = [" ".join(names.get(word, word) for word in each.split()) for each in commands]
            written = [(each, record(each, server.url)) for each in filled]
            page = replaced(page, name, "\n".join(block(command, text) for command, text in written))
            if name in PICTURES:
                picture(name, *written[0])
        PAGE.write_text(page)


def record(command: str, url: str) -> str:
    """Run a command on a terminal, and return what it wrote, with its escape sequences."""
    ours, its = pty.openpty()
    environment = os.environ | {"AILF_URL": url, "COLUMNS": str(WIDTH), "LINES": "40", "TERM": "xterm-256color"}
    process = subprocess.Popen(
        [sys.executable, "-m", "ailf", *command.split()],
        stdin=its,
        stdout=its,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd=ROOT,
    )
    os.close(its)
    written = b""
    while True:
        try:
            piece = os.read(ours, 65_536)
        except OSError:  # Linux's way to say that the other side is closed
            break
        if not piece:
            break
        written += piece
    process.wait()
    os.close(ours)
    text = written.decode().rpartition(SCREEN_END)[2].replace("\r\n", "\n").replace(url, SHOWN)
    return re.sub(r"\x1b\[\?25[hl]|\x1b\[2K|\x1b\[1A|\r[^\n]*\r", "", text)


def plain(text: str) -> str:
    """Return a text without escape sequences and spaces at the ends of lines."""
    return "\n".join(line.rstrip() for line in Text.from_ansi(text).plain.splitlines()).strip("\n")


def block(command: str, text: str) -> str:
    """Return a command and what it wrote, as in a terminal."""
    return f"$ ailf {command}\n{plain(text)}\n"


def replaced(page: str, name: str, text: str) -> str:
    """Return a page with a new recording."""
    pattern = rf"(<!-- recording: {name} -->\n).*?(<!-- end of recording -->)"
    new, count = re.subn(
        pattern, lambda found: f"{found[1]}\n```console\n{text}```\n\n{found[2]}", page, flags=re.DOTALL
    )
    assert count == 1, name
    return new


def picture(name: str, command: str, text: str) -> None:
    """Write a recording as a picture."""
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True, color_system="standard")
    console.print(Text(f"$ ailf {command}", "bold"))
    console.print(Text.from_ansi(text.strip("\n")))
    console.print()  # or the picture ends within the descenders of the last line
    IMAGES.mkdir(exist_ok=True)
    svg = console.export_svg(title=f"ailf {name}", unique_id=f"ailf-{name}")
    svg = re.sub(r" *@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)  # a reader's own font will do
    (IMAGES / f"{name}.svg").write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n")


# --- what there is to see ----------------------------------------------------------------------------------------


@contextmanager
def crew(url: str) -> Iterator[dict[str, str]]:
    """Let a few producers and workers work within the block; yield the ids that commands need."""
    stop = threading.Event()
    with ailf.connect(url) as backend, ExitStack() as stack:
        pages = backend.stream("pages", retention=ailf.Retention.settled())
        mails = backend.stream("mails")
        first = mails.add({"to": "ann@example.org", "text": "hello"}, headers={"campaign": "spring"})
        mails.add_many({"to": f"{number}@example.org", "text": "hello"} for number in range(20))
        letter = bury(mails)
        mails.group("archive").open()
        mails.group("archive").pause()
        groups = [pages.group("fetchers"), pages.group("indexers")]
        threads = [threading.Thread(target=produce, args=[pages, stop])]
        threads += [
            threading.Thread(target=group.process, args=[work], kwargs={"concurrency": 4, "signals": False})
            for group, work in zip(groups, (fast, slow), strict=True)
        ]
        stack.enter_context(backend.lock("reindex", ttl=60).hold())
        backend.rate_limiter("openai", "10/minute").try_acquire("gpt")
        for _ in range(7):
            backend.rate_limiter("openai", "10/minute").try_acquire("gpt")
        for thread in threads:
            thread.start()
        try:
            yield {"MAIL": first, "LETTER": letter}
        finally:
            stop.set()
            for group in groups:
                group.stop()
            for thread in threads:
                thread.join()


def bury(mails: ailf.Stream[object]) -> str:
    """Let a group give up on two messages; return the id of the first dead letter."""
    senders = mails.group("senders", max_deliveries=1, backoff=ailf.Backoff(initial=0.0))
    with senders.consumer() as consumer:
        for reason in ("the mailbox of ann@example.org is full", "550 no such user"):
            delivery = consumer.take(timeout=5)
            assert delivery is not None
            delivery.nack(reason=reason)
    return senders.dead_letters.list()[0].id


def produce(pages: ailf.Stream[object], stop: threading.Event) -> None:
    """Add some hundred messages in a second."""
    number = 0
    while not stop.wait(0.05):
        pages.add_many({"page": number + each} for each in range(20))
        number += 20


def fast(delivery: ailf.Delivery[object]) -> None:
    """Take a moment."""
    del delivery
    time.sleep(0.002)


def slow(delivery: ailf.Delivery[object]) -> None:
    """Take more time than there is."""
    del delivery
    time.sleep(0.02)


if __name__ == "__main__":
    main()
