"""Commands whose effect is seen at the server or in another process, on a real server."""

import subprocess
import sys
import threading

import pytest

import ailf
from tests.support.commands import run
from tests.support.servers import NewServer, Server

CONTROL = "\x1b[31m[red]\x07"


@pytest.fixture
def url(any_server: Server, namespace: str) -> str:
    """The URL of a namespace of the test's own."""
    return f"{any_server.url}?namespace={namespace}"


def test_bench_leaves_nothing(new_server: NewServer) -> None:
    """Bench works in a namespace of its own, even where the URL names another one, and removes it."""
    server = new_server()
    ended = run("bench", "--seconds", "0.02", "--json", f"{server.url}?namespace=other&timeout=3")
    assert ended.code == 0
    assert ended.err == ""
    assert '"name": "publish and receive"' in ended.out
    with server.client() as client:
        assert client.keys("*") == []


def test_contract_leaves_nothing(new_server: NewServer) -> None:
    """The suite runs on the server, its result is the exit code, and its namespaces are removed."""
    server = new_server()
    command = [sys.executable, "-m", "ailf", "contract", server.url, "-k", "test_attempts or test_inspect"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert " passed" in ended.stdout
    assert ended.stdout.endswith("the backend keeps the contract\n")
    with server.client() as client:
        assert client.keys("*") == []


def test_contract_without_a_test(url: str) -> None:
    """If no test was chosen, nothing is shown to be kept: exit code 1."""
    ended = run("contract", "-k", "no_such_test", "--json", url=url)
    assert (ended.code, ended.out) == (1, '{"passed": false, "exit_code": 5}\n')


def test_a_backend_without_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where URLs name no namespace, bench uses a name of its own, and says what it couldn't remove."""
    monkeypatch.setattr("ailf.cli.namespaces.plugin_for", lambda *_: _refuses)
    with ailf.connect("memory://plain") as backend:
        ended = run("bench", "memory://plain", "--seconds", "0.01")
        assert ended.code == 0
        assert "was not removed" in ended.err
        assert list(backend.streams()) == []


def _refuses(url: str) -> None:
    raise ailf.InvalidArgumentError(f"{url}: unknown option namespace")


@pytest.fixture
def without_listing(new_server: NewServer) -> str:
    """A URL whose user lacks the right to list."""
    server = new_server()
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "agent", "reset", "on", ">pw", "~*", "&*", "+@all", "-scan")
    url = f"redis://agent:pw@127.0.0.1:{server.port}/0"
    with ailf.connect(url) as backend:
        backend.stream("orders").group("kitchen").open()
        backend.stream("orders").add(1)
    return url


@pytest.mark.parametrize("command", ["streams", "groups orders", "top", "locks ls", "limits ls", "info orders"])
def test_without_the_right_to_list(without_listing: str, command: str) -> None:
    """A command that lists ends with exit code 5, and names the right that is missing."""
    ended = run(*command.split(), url=without_listing)
    assert ended.code == 5
    assert "+scan" in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("command", ["info orders kitchen", "read orders", "locks inspect report", "ping"])
def test_what_works_without_the_right_to_list(without_listing: str, command: str) -> None:
    """A command that names what it works on needs no listing."""
    assert run(*command.split(), url=without_listing).code == 0


def test_doctor_without_the_right_to_list(without_listing: str) -> None:
    """Doctor says what it can't check, and checks the rest."""
    ended = run("doctor", "--interval", "0", url=without_listing)
    assert ended.code == 0
    assert "warn  listing      the user lacks +scan" in ended.out
    assert "warn  streams" in ended.out
    assert "ok    rights" in ended.out


def test_sub_shows_what_arrives(url: str) -> None:
    """A subscriber shows messages as they arrive, with their headers, and nothing that a terminal interprets."""
    command = [sys.executable, "-m", "ailf", "sub", "news.*", "--pattern", "--limit", "3", "--url", url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "listening to news.*" in process.stderr.readline()
    assert run("pub", "news.a", '{"a": 1}', "--header", f"from={CONTROL}", url=url).code == 0
    assert run("pub", f"news.{CONTROL}", "--raw", CONTROL, url=url).code == 0
    assert run("pub", "news.a", "--raw", stdin=b"\xff\n", url=url).code == 0
    out, _ = process.communicate(timeout=20)
    assert out.splitlines() == [
        r'news.a  {"a": 1}  [from=\x1b[31m[red]\x07]',
        r"news.\x1b[31m[red]\x07  \x1b[31m[red]\x07  [content-type=application/octet-stream]",
        "news.a  base64:/w==  [content-type=application/octet-stream]",
    ]


def test_a_request_gets_its_reply(url: str) -> None:
    """The reply to a request is shown; a responder that fails is exit code 1."""
    with ailf.connect(url) as backend:
        pubsub = backend.pubsub()
        pubsub.subscribe("sum", lambda message: message.reply(sum(message.data)))
        thread = pubsub.run_in_thread()
        assert run("request", "sum", "[1, 2]", url=url).out == "3\n"
        assert run("request", "sum", "-", stdin=b"[3]\n", url=url).out == "3\n"
        assert run("request", "sum", "-", url=url).code == 2
        assert run("request", "sum", "[1, 2]", "--json", url=url).out == '{"data": 3, "headers": {}}\n'
        failed = run("request", "sum", '["a"]', url=url)
        assert (failed.code, failed.out) == (1, "")
        pubsub.stop()
        thread.join()


def test_why_a_message_waits(url: str) -> None:
    """What a group has made of a message is told: settled, in hand, not delivered, a dead letter, gone."""
    with ailf.connect(url) as backend:
        stream = backend.stream("s")
        group = stream.group("g", max_deliveries=1)
        done, dead, held, fresh = [stream.add(number) for number in range(4)]
        with group.consumer() as consumer:
            for settle in ("ack", "reject"):
                delivery = consumer.get(timeout=5)
                assert delivery is not None
                delivery.ack() if settle == "ack" else delivery.reject("no")
            assert consumer.get(timeout=5) is not None
            told = {each: run("why", "message", "s", each, "g", url=url) for each in (done, dead, held, fresh)}
        assert "nothing is left to do: it was settled" in told[done].out
        assert "a dead letter" in told[dead].out
        assert f"in the hands of consumer {consumer.name!r}, attempt 1; unless" in told[held].out
        assert "not delivered yet, behind 0 undelivered messages; the group has 1 consumer" in told[fresh].out
        assert {each.code for each in told.values()} == {0}
        group.pause()
        assert "the group is paused" in run("why", "message", "s", fresh, url=url).out
        assert run("why", "message", "s", fresh, "nope", url=url).code == 6


def test_why_a_message_of_a_partition_waits(url: str) -> None:
    """The place of a message in a partitioned stream isn't known, and all else is told."""
    with ailf.connect(url) as backend:
        stream = backend.stream("wide", partitions=4)
        stream.group("g").open()
        entry_id = [stream.add(number) for number in range(6)][-1]
        told = run("why", "message", "wide", entry_id, url=url)
    assert told.code == 0
    assert "not delivered yet, behind an unknown number of undelivered messages" in told.out


def test_why_a_message_of_another_program_waits(any_server: Server, namespace: str) -> None:
    """An entry that another program took is in the hands of its consumer, until nobody knows when."""
    url = f"{any_server.url}?namespace={namespace}"
    with ailf.connect(url) as backend, any_server.client() as raw:
        stream = backend.stream("s")
        entry_id = stream.add(1)
        stream.group("g").open()
        raw.xreadgroup("g", b"\xff", {f"{{{namespace}:stream:s}}": ">"})
    told = run("why", "message", "s", entry_id, url=url)
    assert r"in the hands of consumer '\udcff' of another program, attempt 1; when it is delivered" in told.out


def test_why_a_lock_is_held(url: str) -> None:
    """The waiters of a lock are counted."""
    with ailf.connect(url) as backend:
        lease = backend.lock("report").try_acquire()
        assert lease is not None
        waiting = threading.Thread(target=lambda: backend.lock("report").acquire(timeout=20).release())
        waiting.start()
        while not backend.lock("report").inspect().waiting:
            pass
        assert "the number of waiters in its queue is 1" in run("why", "lock", "report", url=url).out
        lease.release()
        waiting.join()


def test_a_redriven_letter_is_delivered_again(url: str) -> None:
    """A dead letter that is redriven is delivered as a new message, with attempt 1; all of them with --all."""
    with ailf.connect(url) as backend:
        stream = backend.stream("s")
        group = stream.group("g")
        stream.add_many(range(3))
        with group.consumer() as consumer:
            for _ in range(3):
                delivery = consumer.get(timeout=5)
                assert delivery is not None
                delivery.reject("no")
            first = group.dead_letters.list()[0]
            assert run("dead", "redrive", "s", "g", first.id, "--yes", url=url).out == "put back 1 dead letter\n"
            again = consumer.get(timeout=5)
            assert again is not None
            assert (again.data, again.attempt) == (0, 1)
            again.ack()
        assert run("dead", "purge", "s", "g", "--all", "--yes", url=url).out == "removed 2 dead letters\n"
        assert group.info().dead == 0


@pytest.mark.parametrize("kind", ["memory", "redis"])
def test_too_many_channels(kind: str, request: pytest.FixtureRequest) -> None:
    """More than 10,000 channels with subscribers aren't listed; a prefix helps."""
    url = "memory://crowded" if kind == "memory" else request.getfixturevalue("url")
    with ailf.connect(url) as backend, backend.pubsub().listen("one", *(f"c{number}" for number in range(10_000))):
        refused = run("channels", url=url)
        assert (refused.code, refused.out) == (1, "")
        assert "has more than 10,000 channels with subscribers" in refused.err
        assert "prefix" in refused.err
        assert run("channels", "o", url=url).out.splitlines()[1].split() == ["one", "1"]


def test_a_stream_whose_name_is_not_text(new_server: NewServer) -> None:
    """Another program's stream whose name isn't UTF-8 is left out, and said to be; all others are shown."""
    server = new_server()
    with server.client() as client:
        client.xadd(b"{ailf:stream:\xff\x1b}", {"a": 1})
        client.xadd("{ailf:stream:good}", {"a": 1})
        client.xgroup_create("{ailf:stream:good}", b"\xfe", "0")
        client.xgroup_create("{ailf:stream:good}", "g", "0")
    listed = run("streams", "--json", url=server.url)
    assert (listed.code, listed.out.count('"name"')) == (0, 1)
    assert r"can't open the stream: '\udcff\x1b'" in listed.err
    assert "good" in run("top", "--interval", "0.1", url=server.url).out
    groups = run("groups", "good", "--json", url=server.url)
    assert groups.out.count('"group"') == 1
    assert r"can't open the group: '\udcfe'" in groups.err
    checked = run("doctor", "--interval", "0", url=server.url)
    assert checked.code == 0
    assert r"'\udcff\x1b'" in checked.out
    assert "1 stream, none of which" in checked.out


def reads(server: Server) -> int:
    """Return how often the server has read from a connection."""
    with server.client() as client:
        return int(client.info("stats")["total_reads_processed"])


@pytest.mark.parametrize("command", ["streams", "top --interval 0.1", "doctor --interval 0"])
def test_many_streams_are_asked_in_pages(new_server: NewServer, command: str) -> None:
    """A command asks about a hundred streams, or groups, in one round trip, and finds as much as one by one."""
    server = new_server()
    with ailf.connect(server.url) as backend:
        for number in range(400):
            stream = backend.stream(f"s{number:03}")
            stream.add(1)
            if number < 200:
                stream.group("g").open()
        backend.stream("wide", partitions=4).add_many(range(4))
        backend.stream("wide", partitions=4).group("g").open()
        before = reads(server)
        ended = run(*command.split(), url=server.url)
        after = reads(server)
    assert ended.code == 0, ended.err
    assert "s399" in ended.out or "401 streams" in ended.out
    assert after - before < 200, "one by one it is over 2,000"
