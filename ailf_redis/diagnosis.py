"""What a Redis server says about itself, for ``ailf doctor``: its settings, memory, replicas and the user's rights.

The rule of this file: it decides from replies and sends nothing. `RedisDriver.diagnose` sends `questions` and
`probes`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import attrs

from ailf.driver import Finding, Level
from ailf_redis.connection.resp import Command
from ailf_redis.keys import Keys
from ailf_redis.replies import text

__all__ = ["Answers", "answers_of", "findings", "probes", "questions", "rights_findings"]

RIGHTS: Final = 'see "Rights" in the Redis guide'
MORE_RIGHTS: Final = "run it as a user with +info +config|get, such as an administrator"

FULL, NEARLY_FULL = 0.9, 0.75
"""The shares of a bound from which a finding fails and warns."""

SKEW, GREAT_SKEW = 0.5, 5.0
"""Seconds of difference between the clocks from which a finding warns and fails."""

LAG: Final = 10
"""Seconds that a replica may be behind."""

PERCENT: Final = 100
OLD: Final = 7
_MIB: Final = 1024 * 1024

LISTING: Final = frozenset({"scan", "pubsub|channels", "pubsub|numsub", "pubsub|shardchannels", "pubsub|shardnumsub"})
"""The rights that only listing needs."""

SHARDED: Final = frozenset({"spublish", "pubsub|shardchannels", "pubsub|shardnumsub"})
"""The rights about sharded channels, which Redis 6.2 doesn't know."""

SETTINGS: Final = ("appendfsync", "maxclients", "min-replicas-to-write")


@attrs.frozen
class Answers:
    """The replies to `questions`.

    Attributes:
        info: The fields of INFO; none if the user may not ask.
        settings: The values of those `SETTINGS` that the user may ask for.
        time: The server's time, in seconds since 1970; None if the user may not ask.
    """

    info: Mapping[str, str]
    settings: Mapping[str, str]
    time: float | None


def questions() -> list[Command]:
    """Return the commands whose replies `answers_of` reads. TIME is the first one."""
    return [("TIME",), ("INFO",), *(("CONFIG", "GET", name) for name in SETTINGS)]


def answers_of(replies: Sequence[Any]) -> Answers:
    """Return what the replies to `questions` say; an error reply says nothing."""
    now, info, *settings = (None if isinstance(each, Exception) else each for each in replies)
    return Answers(
        {} if info is None else _fields(text(info)),
        {text(each[0]): text(each[1]) for each in settings if each},
        None if now is None else int(now[0]) + int(now[1]) / 1_000_000,
    )


def _fields(info: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in info.splitlines() if ":" in line and not line.startswith("#"))
    return {name: value.strip() for name, _, value in pairs}


# --- the user's rights -------------------------------------------------------------------------------------------


def probes(keys: Keys, name: str, *, sharded: bool = True) -> dict[str, Command]:
    """Return a command for each right that a user needs. None of them has an effect, and none waits.

    They are about a stream that doesn't exist, or have an argument that the server refuses only after it has checked
    the rights. The list that RPUSH makes is removed by those behind it.

    Arguments:
        keys: The keys of the namespace.
        name: The name of a stream that doesn't exist.
        sharded: Whether the server has sharded channels.
    """
    key, to = keys.stream(name), keys.group(name, name)
    asked: dict[str, Command] = {
        "eval": ("EVAL", "return 0", 0),
        "evalsha": ("EVALSHA", "0" * 40, 0),
        "time": ("TIME",),
        "role": ("ROLE",),
        "publish": ("PUBLISH", keys.channel(name), ""),
        "xadd": ("XADD", key, "NOMKSTREAM", "*", "f", "v"),
        "xread": ("XREAD", "COUNT", 1, "STREAMS", key, "0"),
        "xreadgroup": ("XREADGROUP", "GROUP", "g", "c", "STREAMS", key, ">"),
        "xrange": ("XRANGE", key, "-", "+", "COUNT", 1),
        "xrevrange": ("XREVRANGE", key, "+", "-", "COUNT", 1),
        "xpending": ("XPENDING", key, "g"),
        "xclaim": ("XCLAIM", key, "g", "c", 0, "0-1"),
        "xack": ("XACK", key, "g", "0-1"),
        "xdel": ("XDEL", key, "0-1"),
        "xtrim": ("XTRIM", key, "MAXLEN", 1),
        "xlen": ("XLEN", key),
        "xgroup|create": ("XGROUP", "CREATE", key, "g", "0"),
        "xgroup|destroy": ("XGROUP", "DESTROY", key, "g"),
        "xgroup|delconsumer": ("XGROUP", "DELCONSUMER", key, "g", "c"),
        "xgroup|setid": ("XGROUP", "SETID", key, "g", "0"),
        "xinfo|groups": ("XINFO", "GROUPS", key),
        "xinfo|stream": ("XINFO", "STREAM", key),
        "zadd": ("ZADD", to.due, "XX", 0, "m"),
        "zrem": ("ZREM", to.due, "m"),
        "zscore": ("ZSCORE", to.due, "m"),
        "zmscore": ("ZMSCORE", to.due, "m"),
        "zrange": ("ZRANGE", to.due, 0, 0),
        "zrangebyscore": ("ZRANGEBYSCORE", to.due, 0, 0),
        "zrevrangebyscore": ("ZREVRANGEBYSCORE", to.due, 0, 0),
        "zremrangebyscore": ("ZREMRANGEBYSCORE", to.due, 0, 0),
        "zrangebylex": ("ZRANGEBYLEX", to.due, "-", "+"),
        "zrank": ("ZRANK", to.due, "m"),
        "zcard": ("ZCARD", to.due),
        "zcount": ("ZCOUNT", to.due, 0, 0),
        "hget": ("HGET", to.notes, "f"),
        "hmget": ("HMGET", to.notes, "f"),
        "hgetall": ("HGETALL", to.notes),
        "hvals": ("HVALS", to.notes),
        "hset": ("HSET", to.notes, "f", "v", "no value"),
        "hdel": ("HDEL", to.notes, "f"),
        "hexists": ("HEXISTS", to.notes, "f"),
        "hincrby": ("HINCRBY", to.notes, "f", "no number"),
        "hlen": ("HLEN", to.notes),
        "get": ("GET", to.notes),
        "set": ("SET", to.notes, "v", "no option"),
        "exists": ("EXISTS", to.notes),
        "pexpire": ("PEXPIRE", to.notes, 1),
        "pttl": ("PTTL", to.notes),
        "rpush": ("RPUSH", to.notes, "v"),
        "del": ("DEL", to.notes),
        "unlink": ("UNLINK", to.notes),
        "blpop": ("BLPOP", to.notes, "no number"),
        "llen": ("LLEN", to.notes),
        "scan": ("SCAN", 0, "COUNT", 1),
        "pubsub|channels": ("PUBSUB", "CHANNELS", keys.channel(name)),
        "pubsub|numsub": ("PUBSUB", "NUMSUB", keys.channel(name)),
        "spublish": ("SPUBLISH", keys.channel(name), ""),
        "pubsub|shardchannels": ("PUBSUB", "SHARDCHANNELS", keys.channel(name)),
        "pubsub|shardnumsub": ("PUBSUB", "SHARDNUMSUB", keys.channel(name)),
    }
    return {right: command for right, command in asked.items() if sharded or right not in SHARDED}


def rights_findings(rights: Sequence[str], replies: Sequence[Any]) -> Iterator[Finding]:
    """Yield which rights the user lacks: of those that ailf needs, and of those that only listing needs.

    Arguments:
        rights: The rights, as `probes` names them.
        replies: The replies to their commands.
    """
    refused = {right: str(reply) for right, reply in zip(rights, replies, strict=True) if _is_refusal(reply)}
    needed = {right: reply for right, reply in refused.items() if right not in LISTING}
    if not needed:
        count = sum(right not in LISTING for right in rights)
        yield Finding("rights", Level.OK, f"the user has each of the {count} rights that ailf needs")
    elif any("key" in reply.lower() or "channel" in reply.lower() for reply in needed.values()):
        message = "the user may not access the keys or channels of this namespace"
        yield Finding("rights", Level.FAIL, message, f"ACL SETUSER USER ~{{NAMESPACE:* &NAMESPACE:*; {RIGHTS}")
    else:
        missing = " ".join(f"+{right}" for right in needed)
        yield Finding("rights", Level.FAIL, f"the user lacks {missing}", f"ACL SETUSER USER {missing}; {RIGHTS}")
    if missing := " ".join(f"+{right}" for right in refused if right in LISTING):
        message = f"the user lacks {missing}, without which it can't list all that exists"
        yield Finding("listing", Level.WARN, message, f"ACL SETUSER USER {missing}; {RIGHTS}")


def _is_refusal(reply: object) -> bool:
    return isinstance(reply, Exception) and ("permission" in str(reply).lower() or "NOPERM" in str(reply))


# --- the server --------------------------------------------------------------------------------------------------


def findings(answers: Answers, now: float | None) -> Iterator[Finding]:
    """Yield what the server says about itself.

    Arguments:
        answers: The server's answers.
        now: This machine's time when the server told its own; None if that is unknown.
    """
    if answers.time is not None and now is not None:
        yield _clock(answers.time - now)
    if not answers.info:
        yield Finding("server", Level.WARN, "the user may not ask the server about itself", MORE_RIGHTS)
        return
    info = answers.info
    yield _version(info)
    yield _eviction(info)
    yield from _memory(info)
    yield _persistence(info, answers.settings)
    yield from _replication(info, answers.settings)
    yield _connections(info, answers.settings)


def _clock(skew: float) -> Finding:
    message = f"the server's clock is {abs(skew) * 1000:.1f} ms {'ahead of' if skew > 0 else 'behind'} this machine's"
    if abs(skew) < SKEW:
        return Finding("clock", Level.OK, message)
    level = Level.FAIL if abs(skew) >= GREAT_SKEW else Level.WARN
    return Finding("clock", level, message, "keep the clocks of both by NTP; delays, `at` and fences use the server's")


def _version(info: Mapping[str, str]) -> Finding:
    valkey = info.get("valkey_version")
    name, version = ("Valkey", valkey) if valkey else ("Redis", info.get("redis_version", "?"))
    message = f"{name} {version}, up {int(info.get('uptime_in_seconds', 0)) / 3600:.1f} h"
    major = version.split(".")[0]
    if major.isdecimal() and int(major) < OLD:
        mend = "Redis 7 or newer has exact lags after a removal, and sharded channels"
        return Finding("version", Level.WARN, message, mend)
    return Finding("version", Level.OK, message)


def _eviction(info: Mapping[str, str]) -> Finding:
    policy, bound = info.get("maxmemory_policy", "?"), int(info.get("maxmemory", 0))
    message = f"maxmemory-policy is {policy}"
    if policy == "noeviction":
        return Finding("eviction", Level.OK, message)
    mend = "CONFIG SET maxmemory-policy noeviction"
    unbounded = "" if bound else ", which does nothing while there is no maxmemory"
    lost = (
        "any key, so streams too" if policy.startswith("allkeys") else "keys with a TTL, so locks, limits and dedup ids"
    )
    level = Level.WARN if not bound or policy.startswith("volatile") else Level.FAIL
    return Finding("eviction", level, f"{message}, which removes {lost}{unbounded}", mend)


def _memory(info: Mapping[str, str]) -> Iterator[Finding]:
    used, bound = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not bound:
        message = (
            f"{used / _MIB:.1f} MiB used, and no maxmemory: the kernel may kill the server when its machine is full"
        )
        yield Finding("memory", Level.WARN, message, "CONFIG SET maxmemory to what the server may use")
    else:
        message = f"{used / _MIB:.1f} MiB of {bound / _MIB:.1f} MiB used ({used / bound * PERCENT:.0f} %)"
        level = Level.FAIL if used >= FULL * bound else Level.WARN if used >= NEARLY_FULL * bound else Level.OK
        mend = (
            "" if level is Level.OK else "raise maxmemory, or give streams a retention; a full server refuses messages"
        )
        yield Finding("memory", level, message, mend)
    if evicted := int(info.get("evicted_keys", 0)):
        mend = "CONFIG SET maxmemory-policy noeviction, and CONFIG RESETSTAT"
        yield Finding("evicted", Level.FAIL, f"{evicted:,} keys were evicted since the start", mend)


def _persistence(info: Mapping[str, str], settings: Mapping[str, str]) -> Finding:
    if info.get("aof_enabled") != "1":
        message = "appendonly is off: a server that is killed loses most of what it has acknowledged"
        return Finding(
            "persistence", Level.WARN, message, "CONFIG SET appendonly yes, and in the server's configuration"
        )
    if "err" in (info.get("aof_last_write_status"), info.get("aof_last_bgrewrite_status")):
        return Finding("persistence", Level.FAIL, "writing the AOF has failed", "see the server's log and its disk")
    fsync = settings.get("appendfsync")
    if fsync == "no":
        message = "appendonly is on, and appendfsync is no: a crash of the machine loses what it has not written yet"
        return Finding("persistence", Level.WARN, message, "CONFIG SET appendfsync everysec")
    return Finding("persistence", Level.OK, f"appendonly is on, appendfsync is {fsync or 'not known to this user'}")


def _replication(info: Mapping[str, str], settings: Mapping[str, str]) -> Iterator[Finding]:
    if info.get("role") != "master":
        message = f"this server is a replica of {info.get('master_host', '?')}:{info.get('master_port', '?')}"
        yield Finding("replicas", Level.FAIL, message, "use the URL of the master; with Sentinels see the Redis guide")
        return
    replicas = [_fields_of_replica(value) for name, value in info.items() if _names_replica(name)]
    if not replicas:
        yield Finding("replicas", Level.OK, "there is none")
        return
    lags = [int(each.get("lag", -1)) for each in replicas if each.get("state") == "online"]
    message = f"{len(replicas)}, of which {len(lags)} are online; the furthest is {max(lags, default=0)} s behind"
    if len(lags) < len(replicas) or max(lags, default=0) > LAG:
        yield Finding("replicas", Level.WARN, message, "see the replicas' logs and their network")
    else:
        yield Finding("replicas", Level.OK, message)
    if settings.get("min-replicas-to-write") == "0":
        message = "min-replicas-to-write is 0: a master that was cut off goes on to take writes, which are lost"
        yield Finding("failover", Level.WARN, message, "CONFIG SET min-replicas-to-write 1; see Sentinel in the guide")


def _names_replica(name: str) -> bool:
    return name.startswith("slave") and name.removeprefix("slave").isdecimal()


def _fields_of_replica(value: str) -> dict[str, str]:
    return dict(each.split("=", 1) for each in value.split(",") if "=" in each)


def _connections(info: Mapping[str, str], settings: Mapping[str, str]) -> Finding:
    clients = int(info.get("connected_clients", 0))
    most = int(info.get("maxclients", settings.get("maxclients", 0)))
    rejected = int(info.get("rejected_connections", 0))
    message = f"{clients:,} of {most:,} connections" if most else f"{clients:,} connections"
    mend = "raise maxclients and the limit of open files, or open fewer backends"
    if most and clients >= FULL * most:
        return Finding("connections", Level.FAIL, message, mend)
    if rejected:
        return Finding("connections", Level.WARN, f"{message}; {rejected:,} were rejected since the start", mend)
    return Finding("connections", Level.OK, message)
