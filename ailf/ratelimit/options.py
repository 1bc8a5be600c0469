"""The options of a rate limiter, checked when it is made."""

from collections.abc import Mapping
from typing import Final, Literal

import attrs

from ailf.checks import check_flag, check_name
from ailf.errors import InvalidArgumentError
from ailf.limits import Limit, as_limit

__all__ = ["OPTIONS", "LimiterOptions", "OnBackendError", "check_limit_names"]

OnBackendError = Literal["raise", "allow", "deny"]

RESERVED: Final = frozenset({"key", "keys", "timeout", "within", "cost", "limit", "self", "engine"})
"""Names that limits can't have: the methods that take costs, or limits, by name have arguments of these names."""

MAX_LIMITS = 16


def check_limit_names(name: object, limits: Mapping[str, object]) -> None:
    """Check the names of a limiter's limits."""
    if reserved := RESERVED & limits.keys():
        raise InvalidArgumentError(
            f"rate limiter {name!r}: a limit can't be called {min(reserved)!r}, the name of an argument"
        )


@attrs.frozen(kw_only=True)
class LimiterOptions:
    """The options of a limiter; see `RateLimiter`."""

    name: str
    limits: Mapping[str, Limit]
    root: str | None
    on_backend_error: OnBackendError
    count_denied: bool
    cache_denials: bool

    @classmethod
    def of(
        cls,
        name: str,
        limit: Limit | str | None,
        limits: Mapping[str, Limit | str],
        *,
        root: str | None,
        on_backend_error: OnBackendError,
        count_denied: bool,
        cache_denials: bool,
    ) -> "LimiterOptions":
        """Check the options and return them."""
        check_name("rate limiter", name)
        what = f"rate limiter {name!r}"
        if (limit is None) is (not limits):
            raise InvalidArgumentError(
                f"{what} needs one limit, as in rate_limiter(name, TokenBucket(10)), or several by name, as in "
                "rate_limiter(name, requests='60/minute', tokens='100000/minute')"
            )
        check_limit_names(name, limits)
        if len(limits) > MAX_LIMITS:
            raise InvalidArgumentError(f"{what} has {len(limits)} limits; at most {MAX_LIMITS} are allowed")
        if root is not None:
            check_name(f"root of rate limiter {name!r}", root)
        check_flag("count_denied", count_denied)
        check_flag("cache_denials", cache_denials)
        if on_backend_error not in ("raise", "allow", "deny"):
            raise InvalidArgumentError(f"on_backend_error must be 'raise', 'allow' or 'deny', not {on_backend_error!r}")
        checked = {each: as_limit(f"the limit {each!r}", limits[each]) for each in limits}
        if limit is not None:
            checked = {"": as_limit("the limit", limit)}
        if cache_denials and any(each.leased for each in checked.values()):
            raise InvalidArgumentError(
                f"{what}: cache_denials can't be combined with Concurrency, whose slots are released at any time"
            )
        if count_denied and root is not None:
            raise InvalidArgumentError(
                f"{what}: count_denied can't be combined with root: the denied calls of one key would use up a limit "
                "that it shares with others"
            )
        return cls(
            name=name,
            limits=checked,
            root=root,
            on_backend_error=on_backend_error,
            count_denied=count_denied,
            cache_denials=cache_denials,
        )


OPTIONS: Final = frozenset(attrs.fields_dict(LimiterOptions)) - {"name", "limits"}
"""The names of the options, which stand beside limits among the keyword arguments of a declaration."""
