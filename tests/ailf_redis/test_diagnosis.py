"""What a Redis server says about itself, and what removing namespaces removes."""

import re
import time
import uuid

import pytest

import ailf
from ailf.driver import Finding, Level
from ailf.runtime import run
from ailf_redis.diagnosis import LISTING, Answers, findings, probes, rights_findings
from ailf_redis.keys import Keys
from tests.ailf_redis.test_acl import published
from tests.support.servers import NewServer, Server

UNPROBED = {"hello", "auth", "ping", "select", "subscribe", "psubscribe", "unsubscribe", "punsubscribe"}
"""Rights without which there is no connection, and those of subscriptions, which doctor tries by subscribing."""

SHARDED = {"ssubscribe", "sunsubscribe"}


def diagnosed(url: str) -> dict[str, Finding]:
    """Return the findings of a server by what was checked."""
    with ailf.connect(url) as backend:
        return {each.check: each for each in run(backend.engine.driver.diagnose())}


def info(**fields: str) -> Answers:
    """Return the answers of a healthy server, with these fields."""
    healthy = {
        "redis_version": "8.2.1",
        "role": "master",
        "maxmemory": "1000",
        "used_memory": "10",
        "maxmemory_policy": "noeviction",
        "aof_enabled": "1",
    }
    return Answers(healthy | fields, {"appendfsync": "everysec", "maxclients": "100"}, None)


def level(check: str, **fields: str) -> Level:
    """Return the level of one check of such a server."""
    return next(each.level for each in findings(info(**fields), None) if each.check == check)


def test_a_healthy_server() -> None:
    """A server with AOF, a bound, and no eviction has nothing to mend."""
    assert {each.level for each in findings(info(), None)} == {Level.OK}


@pytest.mark.parametrize(
    ("check", "fields", "expected"),
    [
        ("version", {"redis_version": "6.2.14"}, Level.WARN),
        ("version", {"valkey_version": "8.1.0"}, Level.OK),
        ("eviction", {"maxmemory_policy": "allkeys-lru"}, Level.FAIL),
        ("eviction", {"maxmemory_policy": "volatile-ttl"}, Level.WARN),
        ("eviction", {"maxmemory_policy": "allkeys-lru", "maxmemory": "0"}, Level.WARN),
        ("memory", {"maxmemory": "0"}, Level.WARN),
        ("memory", {"used_memory": "750"}, Level.WARN),
        ("memory", {"used_memory": "900"}, Level.FAIL),
        ("evicted", {"evicted_keys": "3"}, Level.FAIL),
        ("persistence", {"aof_enabled": "0"}, Level.WARN),
        ("persistence", {"aof_last_write_status": "err"}, Level.FAIL),
        ("replicas", {"role": "slave", "master_host": "h"}, Level.FAIL),
        ("replicas", {"slave0": "ip=h,port=1,state=online,offset=9,lag=1"}, Level.OK),
        ("replicas", {"slave0": "ip=h,port=1,state=online,offset=9,lag=11"}, Level.WARN),
        ("replicas", {"slave0": "ip=h,port=1,state=wait_bgsave,offset=0,lag=0"}, Level.WARN),
        ("connections", {"connected_clients": "95"}, Level.FAIL),
        ("connections", {"rejected_connections": "1"}, Level.WARN),
    ],
)
def test_what_is_wrong_is_found(check: str, fields: dict[str, str], expected: Level) -> None:
    """Each fault of a server has its level, and what is wrong has something that mends it."""
    assert level(check, **fields) is expected
    assert all(each.mend for each in findings(info(**fields), None) if each.level is not Level.OK)


@pytest.mark.parametrize(
    ("skew", "expected"), [(0.0, Level.OK), (-0.6, Level.WARN), (0.6, Level.WARN), (9.0, Level.FAIL)]
)
def test_clocks_that_differ(skew: float, expected: Level) -> None:
    """A clock that is ahead or behind is worth a warning, or a failure."""
    answers = Answers({}, {}, 1000.0 + skew)
    assert next(iter(findings(answers, 1000.0))).level is expected


def test_the_probes_are_the_published_rights() -> None:
    """Doctor tries each right of the guide that needs no subscription, and no other."""
    rights = {each.removeprefix("+") for each in published("8.2") if each.startswith("+")}
    assert set(probes(Keys("n"), "s")) - LISTING == rights - UNPROBED - SHARDED - LISTING


def test_a_server_that_is_asked(server: Server, namespace: str) -> None:
    """Every version answers; the diagnosis leaves nothing behind."""
    found = diagnosed(f"{server.url}?namespace={namespace}")
    assert found["rights"].level is Level.OK
    assert found["clock"].level is Level.OK
    assert found["persistence"].level is Level.WARN
    assert re.search(r"(Redis|Valkey) \d", found["version"].message)
    with server.client() as client:
        assert list(client.scan_iter(f"*{namespace}*")) == []
        assert list(client.scan_iter("*doctor*")) == []


def test_settings_of_a_server(new_server: NewServer) -> None:
    """A server that evicts, without AOF, and nearly full, is found out; so is a replica."""
    server = new_server("--maxmemory", "4mb", "--maxmemory-policy", "allkeys-lru", appendonly=True)
    with server.client() as client:
        client.config_set("appendfsync", "no")
        found = diagnosed(server.url)
        assert found["eviction"].level is Level.FAIL
        assert found["persistence"].message.startswith("appendonly is on, and appendfsync is no")
        client.execute_command("REPLICAOF", "127.0.0.1", 1)
        assert diagnosed(server.url)["replicas"].level is Level.FAIL


def test_a_replica_of_a_server(new_server: NewServer) -> None:
    """Replicas are counted, and what a failover could lose is said."""
    master, replica = new_server(), new_server()
    with replica.client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", master.port)
        until = time.monotonic() + 20
        while client.info("replication")["master_link_status"] != "up":
            assert time.monotonic() < until
            time.sleep(0.05)
    found = diagnosed(master.url)
    assert found["replicas"].message.startswith("1, of which")
    assert found["failover"].level is Level.WARN


def test_a_user_with_the_published_rights(redis_versions: list[str], new_server: NewServer) -> None:
    """A user with the published rights has all of them, and may not ask the server about itself."""
    for version in redis_versions:
        server = new_server(version=version)
        with server.client() as admin:
            admin.execute_command("ACL", "SETUSER", "agent", "reset", "on", ">pw", *published(version))
        found = diagnosed(f"redis://agent:pw@127.0.0.1:{server.port}/0")
        assert found["rights"].level is Level.OK, found["rights"]
        assert found["server"].level is Level.WARN


def test_a_user_without_some_rights(redis_versions: list[str], new_server: NewServer) -> None:
    """The rights that a user lacks are named, with what gives them."""
    for version in redis_versions:
        server = new_server(version=version)
        with server.client() as admin:
            rights = [*published(version), "-xclaim", "-blpop", "-hset", "-scan"]
            admin.execute_command("ACL", "SETUSER", "agent", "reset", "on", ">pw", *rights)
        found = diagnosed(f"redis://agent:pw@127.0.0.1:{server.port}/0")
        assert found["listing"].level is Level.WARN
        assert "+scan" in found["listing"].message
        finding = found["rights"]
        assert finding.level is Level.FAIL
        assert finding.message == "the user lacks +xclaim +hset +blpop"
        assert finding.mend.startswith("ACL SETUSER USER +xclaim +hset +blpop")


def test_a_user_of_another_namespace(new_server: NewServer) -> None:
    """A user whose rules name another namespace is told so."""
    server = new_server()
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "agent", "reset", "on", ">pw", *published("8.2"))
    finding = diagnosed(f"redis://agent:pw@127.0.0.1:{server.port}/0?namespace=other")["rights"]
    assert finding.message == "the user may not access the keys or channels of this namespace"


def test_no_right_is_missing_where_nothing_is_refused() -> None:
    """Other errors than refusals are no missing rights."""
    assert [each.level for each in rights_findings(["xadd", "scan"], [Exception("WRONGTYPE x"), 1])] == [Level.OK]


@pytest.fixture
def names() -> list[str]:
    """Two namespaces with a common beginning, and a third one."""
    common = f"rm*[{uuid.uuid4().hex[:8]}"
    return [f"{common}-a", f"{common}-b", f"other-{common}"]


def test_namespaces_are_removed(server: Server, names: list[str]) -> None:
    """All keys of the namespaces with a beginning are removed, and no others."""
    for name in names:
        with ailf.connect(f"{server.url}?namespace={name.replace('[', '%5B')}") as backend:
            backend.stream("orders").add_many(range(10))
            backend.stream("orders").group("kitchen").open()
            backend.rate_limiter("api", "10/hour").try_acquire()
            with backend.lock("report"):
                pass
    with server.client() as client, ailf.connect(server.url) as backend:
        before = set(client.scan_iter("*"))
        removed = run(backend.engine.driver.remove_namespaces(names[0][:-2]))
        gone = before - set(client.scan_iter("*"))
        assert removed == len(gone) >= 6
        assert all(names[0][:-2].encode() in each and b"other" not in each for each in gone)
        assert [each for each in before - gone if names[2].encode() in each]
        run(backend.engine.driver.remove_namespaces(names[2]))
