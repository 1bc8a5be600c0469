"""Listing in a cluster: one node after another, nodes that go between two pages, and channels on all nodes."""

import contextlib
from typing import Any

import ailf
from ailf_redis import RedisBackend
from ailf_redis.keys import Keys
from tests.support import binaries
from tests.support.clusters import Cluster
from tests.support.effort import SLOW


def opened(cluster: Cluster, namespace: str, **options: Any) -> RedisBackend:
    """Return a backend over a blocking client of the cluster."""
    with cluster.client() as client:
        return RedisBackend.from_client(client, namespace=namespace, **options)


def rest(listing: ailf.Listing[str], cursor: str, max_items: int) -> list[str]:
    """Return the items of the pages from a cursor on."""
    items: list[str] = []
    while cursor:
        page = listing.page(cursor, max_items)
        assert len(page.items) <= max_items
        items += page.items
        cursor = page.cursor
    return items


def test_names_on_every_node(cluster: Cluster, namespace: str) -> None:
    """Names on all nodes come, each once, in pages that end at each node."""
    names = {f"s{number}" for number in range(50)}
    with opened(cluster, namespace) as backend:
        for name in names:
            backend.stream(name).add(1)
        backend.stream("parts", partitions=8).add_many(range(3), key="k")
        leases = [backend.lock(name, ttl=100).acquire() for name in names]
        listed = list(backend.streams(page_size=7))
        assert len(listed) == len(set(listed))
        assert set(listed) == names | {"parts"}
        assert {each.name for each in backend.locks(page_size=7)} == names
        for lease in leases:
            lease.release()


def test_a_slot_that_has_moved(cluster: Cluster, namespace: str) -> None:
    """After a slot has moved its names are still listed, and its locks too."""
    with opened(cluster, namespace) as backend:
        backend.stream("s").add(1)
        lease = backend.lock("s", ttl=100).acquire()
        cluster.move(Keys(namespace).stream("s"))
        cluster.move(Keys(namespace).lock("s")[0])
        assert list(backend.streams()) == ["s"]
        assert [each.name for each in backend.locks()] == ["s"]
        lease.release()


def test_a_node_that_is_none(cluster: Cluster, namespace: str) -> None:
    """A cursor of a node that has gone begins anew with the first one: every name comes, some of them twice."""
    names = {f"s{number}" for number in range(50)}
    with opened(cluster, namespace) as backend:
        for name in names:
            backend.stream(name).add(1)
        first = backend.streams().page(max_items=5)
        _, pass_, _, *others = first.cursor.split(":")
        elsewhere = ":".join(("streams", pass_, "127.0.0.1%3A1", *others))
        assert names <= {*first.items, *rest(backend.streams(), elsewhere, 7)}


def test_subscribers_on_several_nodes(cluster: Cluster, namespace: str) -> None:
    """The subscribers of other programs count, at whichever node they are."""
    name = f"{namespace}:channel:news"
    with contextlib.ExitStack() as stack, opened(cluster, namespace) as backend:
        for node in cluster.nodes:
            subscriber = stack.enter_context(stack.enter_context(node.client()).pubsub())
            subscriber.subscribe(name)
            subscriber.get_message(timeout=5)
        with backend.pubsub().listen("news"):
            assert backend.pubsub().channels() == [ailf.ChannelInfo("news", len(cluster.nodes) + 1)]


@SLOW
def test_a_master_that_dies_between_pages() -> None:
    """The listing goes on at its replica, where the scan begins anew: every name comes."""
    version, binary = next(reversed(binaries.found().items()))
    names = {f"s{number}" for number in range(60)}
    with contextlib.closing(Cluster(binary, version)) as cluster, opened(cluster, "ns", retry_for=120) as backend:
        for name in names:
            backend.stream(name).add(1)
        first = backend.streams().page(max_items=3)
        address = first.cursor.split(":")[2].replace("%3A", ":")
        master = next(each for each in cluster.nodes if each.port == int(address.rpartition(":")[2]))
        cluster.fail_over(master, cluster.add_replica(master))
        assert names <= {*first.items, *rest(backend.streams(), first.cursor, 3)}
