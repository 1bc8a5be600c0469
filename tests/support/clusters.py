"""A real cluster of three masters, and a master with a replica that a Sentinel watches, each on free ports."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import redis
from redis.crc import key_slot

from tests.support.servers import HOST, Server

__all__ = ["Cluster", "Watch", "until"]

SLOTS = 16384
NODES = 3
DEADLINE = 20.0
SYNC = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")


def until(what: str, condition: Callable[[], Any]) -> None:
    """Return when a condition holds.

    Raises:
        TimeoutError: It doesn't, for 20 s.
    """
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.02)


def ask(server: Server, *command: Any) -> Any:
    """Send one command over a connection of its own."""
    with server.client() as client:
        return client.execute_command(*command)


class Cluster:
    """Three masters, with a third of the slots each.

    Attributes:
        nodes: The servers.
    """

    def __init__(self, binary: Path, version: str) -> None:
        self._binary = binary
        self._replicas: list[Server] = []
        self.nodes = [self._start(version) for _ in range(NODES)]
        try:
            self._join()
        except BaseException:
            self.close()
            raise

    def _start(self, version: str) -> Server:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
        return Server.start(self._binary, *options, *SYNC, version=version)

    def _join(self) -> None:
        first, *others = self.nodes
        for number, node in enumerate(self.nodes):
            begin, end = (SLOTS * at // NODES for at in (number, number + 1))
            ask(node, "CLUSTER", "ADDSLOTSRANGE", begin, end - 1)
            ask(node, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in others:
            ask(node, "CLUSTER", "MEET", HOST, first.port)
        until("the cluster did not come up", lambda: all(self._up(node) for node in self.nodes))

    def _up(self, node: Server) -> bool:
        info = ask(node, "CLUSTER", "INFO")
        return b"cluster_state:ok" in info and b"cluster_known_nodes:%d" % NODES in info

    def client(self, **options: Any) -> redis.RedisCluster:
        """A client of redis-py; close it, or use it with `with`."""
        return redis.RedisCluster(host=HOST, port=self.nodes[0].port, **options)

    def async_client(self, **options: Any) -> redis.asyncio.RedisCluster:
        """The same for asyncio; it connects when it is used."""
        return redis.asyncio.RedisCluster(host=HOST, port=self.nodes[0].port, **options)

    def owner(self, slot: int) -> Server:
        """The node that serves a slot."""
        for first, last, master, *_ in ask(self.nodes[0], "CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == master[1])
        raise LookupError(slot)

    def begin_to_move(self, key: str) -> tuple[Server, Server]:
        """Let the slot of a key be on its way to another node; return from where and where to."""
        slot = key_slot(key.encode())
        source = self.owner(slot)
        target = next(node for node in self.nodes if node is not source)
        ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", ask(source, "CLUSTER", "MYID"))
        ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", ask(target, "CLUSTER", "MYID"))
        return source, target

    def finish(self, key: str, source: Server, target: Server) -> None:
        """Let the rest of the slot go, and every node know."""
        slot = key_slot(key.encode())
        while keys := ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            ask(source, "MIGRATE", HOST, target.port, "", 0, 5000, "KEYS", *keys)
        for node in dict.fromkeys((target, source, *self.nodes)):
            ask(node, "CLUSTER", "SETSLOT", slot, "NODE", ask(target, "CLUSTER", "MYID"))

    def move(self, key: str) -> None:
        """Move the slot of a key, with all that is in it, to another node."""
        self.finish(key, *self.begin_to_move(key))

    def add_replica(self, master: Server) -> Server:
        """Start a replica of a node, which becomes the master when that is gone; return it when it has everything."""
        replica = self._start(master.version)
        self._replicas.append(replica)
        ask(replica, "CLUSTER", "MEET", HOST, master.port)
        name = ask(master, "CLUSTER", "MYID")
        until("the replica was not met", lambda: name in ask(replica, "CLUSTER", "NODES"))
        ask(replica, "CLUSTER", "REPLICATE", name)
        until("the replica did not get ready", lambda: ask(replica, "INFO").get("master_link_status") == "up")
        own = ask(replica, "CLUSTER", "MYID")
        until("the replica is not known", lambda: all(self._follows(node, own) for node in self.nodes))
        return replica

    @staticmethod
    def _follows(node: Server, name: bytes) -> bool:
        """Tell whether a node knows another as a replica, which needs its votes to become a master."""
        lines = ask(node, "CLUSTER", "NODES").splitlines()
        return any(line.startswith(name) and b"slave" in line for line in lines)

    def close(self) -> None:
        """Stop the nodes."""
        for node in (*self.nodes, *self._replicas):
            node.close()


class Watch:
    """A master, its replicas, and the Sentinels that make a replica the master when the master is gone.

    Arguments:
        binary: The server's binary.
        version: Its version.
        options: Further options of the master and its replicas.
        replicas: How many replicas there are.
        sentinels: How many Sentinels there are; most of them decide.
        down_after_ms: After how many milliseconds of silence a Sentinel takes a server for dead.

    Attributes:
        servers: The master and its replicas; any of them may be the master later.
        sentinels: The Sentinels.
    """

    SERVICE = "watched"

    def __init__(
        self, binary: Path, version: str, *options: str, replicas: int = 1, sentinels: int = 1, down_after_ms: int = 300
    ) -> None:
        self._down_after_ms = down_after_ms
        self._all: list[Server] = []
        try:
            master = self._start(binary, version, *SYNC, *options)
            follow = ("--replicaof", HOST, str(master.port))
            self.servers = [master, *(self._start(binary, version, *SYNC, *options, *follow) for _ in range(replicas))]
            for replica in self.servers[1:]:
                until("a replica did not get ready", lambda: ask(replica, "INFO")["master_link_status"] == "up")  # noqa: B023 - called here
            self.sentinels = [self._start(binary, version, "--sentinel") for _ in range(sentinels)]
            for sentinel in self.sentinels:
                self.monitor(sentinel, master, quorum=sentinels // 2 + 1)
            until("the Sentinels did not find each other", lambda: all(map(self._knows_all, self.sentinels)))
        except BaseException:
            self.close()
            raise

    def _start(self, binary: Path, version: str, *options: str) -> Server:
        self._all.append(Server.start(binary, *options, version=version))
        return self._all[-1]

    def monitor(self, sentinel: Server, master: Server, *, quorum: int = 1) -> None:
        """Have a Sentinel watch a master."""
        ask(sentinel, "SENTINEL", "MONITOR", self.SERVICE, HOST, master.port, quorum)
        for name, value in (("down-after-milliseconds", self._down_after_ms), ("failover-timeout", 2000)):
            ask(sentinel, "SENTINEL", "SET", self.SERVICE, name, value)

    def _knows_all(self, sentinel: Server) -> bool:
        replicas = ask(sentinel, "SENTINEL", "REPLICAS", self.SERVICE)
        others = ask(sentinel, "SENTINEL", "SENTINELS", self.SERVICE)
        return (len(replicas), len(others)) == (len(self.servers) - 1, len(self.sentinels) - 1)

    @property
    def sentinel(self) -> Server:
        """The first Sentinel that runs."""
        return next(each for each in self.sentinels if each.running)

    @property
    def master(self) -> Server:
        """The server that is the master, as the first Sentinel says that runs."""
        return self._named_by(self.sentinel)

    def _named_by(self, sentinel: Server) -> Server:
        """The master that a Sentinel names; it changes as the Sentinel publishes ``+switch-master``."""
        reply = ask(sentinel, "SENTINEL", "MASTER", self.SERVICE)
        port = int(reply[reply.index(b"port") + 1])
        return next(each for each in self.servers if each.port == port)

    def fail_over(self) -> Server:
        """Have a replica made the master while the master lives and goes on taking writes; return the former one.

        This returns when the first Sentinel publishes it. Some 10 s later they make a replica of the former one.
        """
        master = self.master

        def accepted() -> bool:
            try:
                return bool(ask(self.sentinel, "SENTINEL", "FAILOVER", self.SERVICE))
            except redis.ResponseError as error:  # it doesn't yet know enough of the replica
                if "NOGOODSLAVE" not in str(error):
                    raise
                return False

        until("no replica can be promoted", accepted)
        running = [each for each in self.sentinels if each.running]
        until("no failover", lambda: any(self._named_by(each) is not master for each in running))
        return master

    def agree(self) -> bool:
        """Tell whether all Sentinels that run name the same master."""
        return len({self._named_by(each) for each in self.sentinels if each.running}) == 1

    def settled(self) -> bool:
        """Tell whether every other server follows the master and has everything."""
        try:
            states = {each.port: ask(each, "ROLE") for each in self.servers}
        except redis.ConnectionError:  # a server that is made a replica ends its connections
            return False
        first, *others = sorted(states.values(), key=lambda state: state[0] != b"master")
        port = self.master.port
        return (
            states[port] is first
            and first[0] == b"master"
            and all(state[0] == b"slave" and (state[2], state[3]) == (port, b"connected") for state in others)
        )

    def addresses(self) -> list[tuple[str, int]]:
        """Where the Sentinels are: one that is gone, and those that were started."""
        return [(HOST, 1), *((HOST, each.port) for each in self.sentinels)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop them all."""
        for each in reversed(self._all):
            each.close()
