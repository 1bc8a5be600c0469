"""A real cluster of three masters, and a master with replicas that Sentinels watch, on free ports."""

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

    Arguments:
        what: The message of the error.
        condition: Is called until it returns something true.

    Raises:
        TimeoutError: It didn't hold within 20 s.
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

    Arguments:
        binary: The server's binary.
        version: Its version.
        options: Further options of every node.
        appendonly: Whether nodes write what they store to disk, at once.

    Attributes:
        nodes: The servers.
    """

    def __init__(self, binary: Path, version: str, *options: str, appendonly: bool = False) -> None:
        self._binary = binary
        self._options = (*options, *(("--appendfsync", "always") if appendonly else ()))
        self._appendonly = appendonly
        self._replicas: list[Server] = []
        self.nodes = [self._start(version) for _ in range(NODES)]
        try:
            self._join()
        except BaseException:
            self.close()
            raise

    def _start(self, version: str) -> Server:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", *self._options)
        return Server.start(self._binary, *options, *SYNC, version=version, appendonly=self._appendonly)

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
        """Return a client of redis-py; close it, or use it with `with`."""
        return redis.RedisCluster(host=HOST, port=self._first.port, **options)

    def async_client(self, **options: Any) -> redis.asyncio.RedisCluster:
        """Return an asyncio client; it connects when it is used."""
        return redis.asyncio.RedisCluster(host=HOST, port=self._first.port, **options)

    @property
    def _first(self) -> Server:
        """The first node that runs."""
        return next(node for node in self.nodes if node.running)

    def owner(self, slot: int) -> Server:
        """Return the node that serves a slot."""
        for first, last, master, *_ in ask(self._first, "CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in (*self.nodes, *self._replicas) if node.port == master[1])
        raise LookupError(slot)

    def ready(self) -> bool:
        """Tell whether every node runs and serves all slots, and every replica is in sync."""
        try:
            infos = [(ask(node, "CLUSTER", "INFO"), ask(node, "INFO")) for node in (*self.nodes, *self._replicas)]
        except redis.ConnectionError:
            return False
        return all(
            b"cluster_state:ok" in state and info.get("master_link_status", "up") == "up" for state, info in infos
        )

    def begin_to_move(self, key: str) -> tuple[Server, Server]:
        """Begin to move the slot of a key to another node; return the source and the target."""
        slot = key_slot(key.encode())
        source = self.owner(slot)
        target = next(node for node in self.nodes if node is not source)
        ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", ask(source, "CLUSTER", "MYID"))
        ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", ask(target, "CLUSTER", "MYID"))
        return source, target

    def finish(self, key: str, source: Server, target: Server) -> None:
        """Move the remaining keys of the slot, and tell every node its new place."""
        slot = key_slot(key.encode())
        while keys := ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            ask(source, "MIGRATE", HOST, target.port, "", 0, 5000, "KEYS", *keys)
        for node in dict.fromkeys((target, source, *self.nodes)):
            ask(node, "CLUSTER", "SETSLOT", slot, "NODE", ask(target, "CLUSTER", "MYID"))

    def move(self, key: str) -> None:
        """Move the slot of a key, with all its keys, to another node."""
        self.finish(key, *self.begin_to_move(key))

    def add_replica(self, master: Server) -> Server:
        """Start a replica that becomes the master when the master dies; return it when it is in sync and known."""
        replica = self._start(master.version)
        self._replicas.append(replica)
        ask(replica, "CLUSTER", "MEET", HOST, master.port)
        name = ask(master, "CLUSTER", "MYID")
        until("the replica was not met", lambda: name in ask(replica, "CLUSTER", "NODES"))
        ask(replica, "CLUSTER", "REPLICATE", name)
        until("the replica did not get ready", lambda: ask(replica, "INFO").get("master_link_status") == "up")
        own = ask(replica, "CLUSTER", "MYID")
        until("the replica is not known", lambda: all(self._follows(node, own) for node in self.nodes))
        # It may know fewer nodes than know it, and without the others it is no part of the cluster when it takes over.
        others = [ask(node, "CLUSTER", "MYID") for node in self.nodes]
        until("the replica knows no others", lambda: all(self._knows(replica, each) for each in others))
        return replica

    @staticmethod
    def fail_over(master: Server, replica: Server) -> None:
        """Kill a master when its replica has all that it has; let that take over at once, without an election."""
        with master.client() as raw:
            raw.publish("unused", "so that there is something to wait for")
            until("the replica has not received it", lambda: raw.wait(1, 1000) == 1)
        master.kill()
        ask(replica, "CLUSTER", "FAILOVER", "TAKEOVER")

    @staticmethod
    def _knows(node: Server, name: bytes) -> bool:
        """Tell whether a node knows another, and is done with their handshake."""
        lines = ask(node, "CLUSTER", "NODES").splitlines()
        return any(line.startswith(name) and b"handshake" not in line for line in lines)

    @staticmethod
    def _follows(node: Server, name: bytes) -> bool:
        """Tell whether a node knows another as a replica; only then can it vote for it as a master."""
        lines = ask(node, "CLUSTER", "NODES").splitlines()
        return any(line.startswith(name) and b"slave" in line for line in lines)

    def close(self) -> None:
        """Stop the nodes."""
        for node in (*self.nodes, *self._replicas):
            node.close()


class Watch:
    """A master, its replicas, and the Sentinels that promote a replica when the master dies.

    Arguments:
        binary: The server's binary.
        version: Its version.
        options: Further options of the master and its replicas.
        replicas: The number of replicas.
        sentinels: The number of Sentinels; a majority decides.
        down_after_ms: Milliseconds of silence after which a Sentinel takes a server for dead.

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
        """The server that is the master, according to the first Sentinel that runs."""
        return self._named_by(self.sentinel)

    def _named_by(self, sentinel: Server) -> Server:
        """Return the master that a Sentinel names; that changes when the Sentinel publishes ``+switch-master``."""
        reply = ask(sentinel, "SENTINEL", "MASTER", self.SERVICE)
        port = int(reply[reply.index(b"port") + 1])
        return next(each for each in self.servers if each.port == port)

    def fail_over(self) -> Server:
        """Promote a replica while the master is alive and accepts writes; return the former master.

        It returns when the first Sentinel names the new master. Some 10 s later the former one becomes a replica.
        """
        master = self.master

        def accepted() -> bool:
            try:
                return bool(ask(self.sentinel, "SENTINEL", "FAILOVER", self.SERVICE))
            except redis.ResponseError as error:  # it doesn't know enough about the replica yet
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
        """Tell whether every other server follows the master and is in sync."""
        try:
            states = {each.port: ask(each, "ROLE") for each in self.servers}
        except redis.ConnectionError:  # a server that becomes a replica closes its connections
            return False
        first, *others = sorted(states.values(), key=lambda state: state[0] != b"master")
        port = self.master.port
        return (
            states[port] is first
            and first[0] == b"master"
            and all(state[0] == b"slave" and (state[2], state[3]) == (port, b"connected") for state in others)
        )

    def addresses(self) -> list[tuple[str, int]]:
        """Return the addresses of the Sentinels: a dead one, and those that were started."""
        return [(HOST, 1), *((HOST, each.port) for each in self.sentinels)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop all servers."""
        for each in reversed(self._all):
            each.close()
