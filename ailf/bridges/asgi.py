"""Rate limits for web applications: a middleware for ASGI, and a dependency for FastAPI.

The middleware needs no framework: it works with Starlette, FastAPI, Litestar, Quart, Django's ASGI application and
every other one. `rate_limit` imports FastAPI when it is called.
"""

import asyncio
import hashlib
import ipaddress
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, MutableMapping
from typing import Any, Final

import attrs

from ailf.bridges.ratelimit_fields import (
    QUOTA_EXCEEDED,
    REDUCED_CAPACITY,
    policy_name,
    policy_of,
    retry_after_of,
    states_of,
)
from ailf.checks import MAX_NAME, check_seconds, check_text
from ailf.errors import BackendError, ClosedError, InvalidArgumentError, RateLimitedError, UnsupportedError
from ailf.logs import About, Log
from ailf.ratelimit import AsyncPermit, AsyncRateLimiter
from ailf.runtime.aio import start_task
from ailf.values import Decision, LimitState

__all__ = ["RateLimitMiddleware", "client_ip", "header", "rate_limit"]

log = Log("ailf.rate_limiter")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Key = str | Callable[[Scope], str | Mapping[str, str]]
Costs = Callable[[Scope], Mapping[str, int] | None]

RESPONSE_FIRST: Final = (0, 118)
"""The first version of FastAPI that ends a dependency after the response was sent, as before 0.106."""


# --- keys ---------------------------------------------------------------------------------------------------------


def client_ip(scope: Scope) -> str:
    """Return the address of a request's client as a key: ``ip:192.0.2.1``.

    Of an IPv6 address the first 64 bits count, as one client has at least all addresses with these. Behind a proxy the
    server must find the client's address, as ``uvicorn --forwarded-allow-ips=…`` does. A header that any client sends
    would let it choose its key.

    >>> from ailf.bridges.asgi import client_ip
    >>> client_ip({"client": ("2001:db8::7", 4711)})
    'ip:2001:db8::/64'
    """
    host = str((scope.get("client") or ("",))[0])
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:  # a unix socket, or the client of a test
        return f"ip:{host}"
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        return f"ip:{mapped or ipaddress.ip_network((address, 64), strict=False)}"
    return f"ip:{address}"


def header(name: str) -> Callable[[Scope], str]:
    """Return a function for the key of a request: the value of a header, or else the client's address.

    The address counts also for a request with several such headers, of which a later check may see one only. The value
    is hashed, as it may be a secret or of any length. Check it before: a client that may send any value gets a new
    quota with each.

    Arguments:
        name: The name of the header, such as ``"x-api-key"``.

    >>> from ailf.bridges.asgi import header
    >>> header("X-API-Key")({"headers": [(b"x-api-key", b"secret")], "client": None})
    'x-api-key:2bb80d537b1da3e38bd30361aa855686'
    """
    wanted = check_text("name", name).lower()
    encoded = wanted.encode("latin-1", "replace")

    def key(scope: Scope) -> str:
        values = [value for each, value in scope["headers"] if each.lower() == encoded]
        if len(values) != 1:
            return client_ip(scope)
        return f"{wanted}:{hashlib.sha256(values[0]).hexdigest()[:32]}"

    return key


def _fit(key: Any) -> Any:
    """Return a key that a limiter takes: in place of text that is too long, or no valid Unicode, its hash."""
    if not isinstance(key, str):
        return key
    raw = key.encode("utf-8", "surrogatepass")
    if len(raw) <= MAX_NAME and raw == key.encode("utf-8", "ignore"):
        return key
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


# --- deciding -----------------------------------------------------------------------------------------------------


@attrs.frozen
class Admission:
    """The decision on a request.

    Attributes:
        permit: The permit of an allowed request, if it has one.
        headers: The fields to send with the response.
        status: The status of the response to a request that wasn't allowed; 0 if it was.
        problem: The body of that response.
    """

    permit: AsyncPermit | None
    headers: dict[str, str]
    status: int = 0
    problem: dict[str, Any] = attrs.field(factory=dict)


UNAVAILABLE: Final = Admission(
    None,
    {"Retry-After": "1"},
    503,
    {
        "type": REDUCED_CAPACITY,
        "title": "Service unavailable",
        "status": 503,
        "detail": "The rate limits of this service can't be checked at the moment.",
    },
)
"""The answer while the backend is away."""


class Gate:
    """Decides on requests and releases their slots; the middleware and the dependency have one each.

    Arguments:
        limiter: The limiter.
        key: The key of all requests, or a function that returns it.
        costs: Returns the costs of a request; None: each costs 1 of every limit.
        max_wait: Seconds that a request may wait in line.
    """

    def __init__(self, limiter: AsyncRateLimiter, key: Key, costs: Costs | None, max_wait: float) -> None:
        if not isinstance(limiter, AsyncRateLimiter):
            raise InvalidArgumentError(
                f"a web application needs an AsyncRateLimiter, not {type(limiter).__name__}: get one from "
                "ailf.connect_async(…), or from backend.to_async()"
            )
        if not isinstance(key, str) and not callable(key):
            raise InvalidArgumentError(f"key must be text, or a function of the scope, not {key!r}")
        if costs is not None and not callable(costs):
            raise InvalidArgumentError(f"costs must be a function of the scope, not {costs!r}")
        self.limiter = limiter
        self._key = key
        self._costs = costs
        self.max_wait = check_seconds("max_wait", max_wait)
        self.holds = any(limit.leased for limit in limiter.limits.values())
        self._policy = {"RateLimit-Policy": policy_of(limiter.limits)}
        self._away = False
        self._later: set[asyncio.Task[None]] = set()

    async def admit(
        self, scope: Scope, wait: Callable[[Awaitable[AsyncPermit]], Awaitable[AsyncPermit | None]]
    ) -> Admission | None:
        """Decide on a request; None if its client has gone.

        Arguments:
            scope: The scope of the request.
            wait: Awaits a permit; returns None if the client has gone.
        """
        costs = {} if self._costs is None else self._costs(scope)
        if costs is None:
            return Admission(None, {})
        key = self._key if isinstance(self._key, str) else self._key(scope)
        arguments: dict[str, Any] = dict(costs)
        if isinstance(key, Mapping):
            arguments["keys"] = {name: _fit(each) for name, each in key.items()}
        else:
            arguments["key"] = _fit(key)
        try:
            return await self._decided(arguments, wait)
        except RateLimitedError as error:
            if isinstance(error.__cause__, BackendError):
                return self._failed(error.__cause__)
            known = error.bound in self.limiter.limits
            states = {error.bound: LimitState(0, error.retry_after, 0.0)} if known else {}
            return self._denied(states, error.retry_after)
        except (BackendError, ClosedError) as error:
            return self._failed(error)

    async def _decided(
        self,
        arguments: dict[str, Any],
        wait: Callable[[Awaitable[AsyncPermit]], Awaitable[AsyncPermit | None]],
    ) -> Admission | None:
        decision = await self.limiter.try_acquire(**arguments)
        if not decision and self._may_wait(decision):
            permit = await wait(self.limiter.acquire(timeout=self.max_wait, **arguments))
            return None if permit is None else self._allowed(permit, permit.limits)
        self._away = False
        if decision:
            return self._allowed(decision.permit, {} if decision.error else decision.limits)
        return UNAVAILABLE if decision.error else self._denied(decision.limits, decision.retry_after)

    def _may_wait(self, decision: Decision[Any]) -> bool:
        """Tell whether a denied request may pass within `max_wait`."""
        if not self.max_wait or decision.error is not None or decision.retry_after is None:
            return False
        return all(  # a slot may be freed at any time
            state.retry_after is not None and (self.limiter.limits[name].leased or state.retry_after <= self.max_wait)
            for name, state in decision.limits.items()
        )

    def _allowed(self, permit: AsyncPermit | None, states: Mapping[str, LimitState]) -> Admission:
        fields = states_of(self.limiter.limits, states, denied=False)
        return Admission(permit, {**self._policy, "RateLimit": fields} if fields else {})

    def _denied(self, states: Mapping[str, LimitState], retry_after: float | None) -> Admission:
        headers = dict(self._policy)
        if fields := states_of(self.limiter.limits, states, denied=True):
            headers["RateLimit"] = fields
        denying = {name: state for name, state in states.items() if state.retry_after != 0}
        waits = [
            1.0 if state.retry_after and self.limiter.limits[name].leased else state.retry_after
            for name, state in denying.items()
        ]
        wait = retry_after_of(waits or [retry_after])  # nobody knows when a slot is freed: a second, and not its lease
        if wait is not None:
            headers["Retry-After"] = wait
        detail = "This request costs more than its limit ever admits." if wait is None else f"Try again in {wait} s."
        problem = {
            "type": QUOTA_EXCEEDED,
            "title": "Too many requests",
            "status": 429,
            "detail": detail,
            "violated-policies": [policy_name(name) for name in denying],
        }
        return Admission(None, headers, 429, problem)

    def _failed(self, error: Exception) -> Admission:
        """Refuse a request because the limiter's backend can't answer; log that once for each outage."""
        (log.debug if self._away else log.warning)(
            About(str(self.limiter), {}), "requests are refused, as its backend can't answer: %s", error
        )
        self._away = True
        return UNAVAILABLE

    async def release(self, admission: Admission) -> None:
        """Release the slots of a request, even if its task is cancelled again and again, as anyio does."""
        if self.holds and admission.permit is not None:
            await asyncio.shield(self.later(admission.permit.__aexit__(None, None, None)))

    def later(self, flow: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a flow to its end, in a task that is not lost."""
        task = start_task(flow)
        self._later.add(task)
        task.add_done_callback(self._later.discard)
        return task


# --- the middleware -----------------------------------------------------------------------------------------------


class RateLimitMiddleware:
    """ASGI middleware that limits HTTP requests by key, over all processes.

    An allowed request goes on to the application, and its response gets the fields ``RateLimit-Policy`` and
    ``RateLimit`` (draft-ietf-httpapi-ratelimit-headers-10). A denied one is answered with 429, ``Retry-After`` and a
    JSON problem (RFC 9457). The slot of a `Concurrency` limit is held until the last byte of the response was handed to
    the server, or the application ends. Websockets and lifespan pass through.

    While the backend is away, ``on_backend_error`` of the limiter decides. By default the middleware fails closed: a
    request waits for the backend's ``retry_for`` (5 seconds) and is answered with 503. With ``"deny"`` that happens at
    once, and with ``"allow"`` requests pass without a limit.

    Arguments:
        app: The application.
        limiter: The limiter, of an asyncio backend.
        key: The key of all requests, or a function from a scope to its key, such as ``header("x-api-key")``; by default
            the client's address. For a budget tree the function returns the key of each limit by its name.
        costs: A function from a scope to the costs of the request by limit, or to None if it isn't limited; by default
            a request costs 1 of every limit.
        max_wait: Seconds that a request may wait in line before it is answered with 429.

    Raises:
        InvalidArgumentError: An argument can't be used.

    Example:
        >>> from typing import Any
        >>> import ailf
        >>> from ailf.bridges.asgi import RateLimitMiddleware, header
        >>> async def app(scope: Any, receive: Any, send: Any) -> None:
        ...     await send({"type": "http.response.start", "status": 204, "headers": []})
        ...     await send({"type": "http.response.body"})
        >>> backend = ailf.connect_async("memory://")  # "redis://localhost:6379/0" for several processes
        >>> limiter = backend.rate_limiter("web", "100/minute")
        >>> limited = RateLimitMiddleware(app, limiter, key=header("x-api-key"))
    """

    def __init__(
        self,
        app: App,
        limiter: AsyncRateLimiter,
        *,
        key: Key = client_ip,
        costs: Costs | None = None,
        max_wait: float = 0.0,
    ) -> None:
        self.app = app
        self._gate = Gate(limiter, key, costs, max_wait)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        received = _ReadAhead(receive, self._gate.later)
        try:
            admission = await self._gate.admit(scope, received.until_gone)
            if admission is None:  # nobody is there to get a response
                return
            if admission.status:
                await _answer(admission, send)
                return
            await self._forward(scope, received, send, admission)
        finally:
            received.close()

    async def _forward(self, scope: Scope, receive: Receive, send: Send, admission: Admission) -> None:
        fields = _encoded(admission.headers)
        released = False

        async def send_and_release(message: Message) -> None:
            nonlocal released
            if message["type"] == "http.response.start" and fields:
                message = {**message, "headers": [*message.get("headers", ()), *fields]}
            await send(message)
            if not released and _is_last(message):
                released = True
                await self._gate.release(admission)

        try:
            await self.app(scope, receive, send_and_release)
        finally:
            if not released:
                await self._gate.release(admission)


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Return headers as ASGI takes them."""
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


def _is_last(message: Message) -> bool:
    """Tell whether a message is the end of the response's body."""
    kind = message["type"]
    return kind == "http.response.pathsend" or (kind == "http.response.body" and not message.get("more_body", False))


async def _answer(admission: Admission, send: Send) -> None:
    """Send the response to a request that wasn't allowed."""
    body = json.dumps(admission.problem).encode()
    headers = {**admission.headers, "Content-Type": "application/problem+json", "Content-Length": str(len(body))}
    await send({"type": "http.response.start", "status": admission.status, "headers": _encoded(headers)})
    await send({"type": "http.response.body", "body": body})


class _ReadAhead:
    """What the application receives: `until_gone` reads ahead, to see a client go while its request waits in line."""

    def __init__(self, receive: Receive, later: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]) -> None:
        self._receive = receive
        self._later = later
        self._messages: deque[Message] = deque()
        self._next: asyncio.Task[Message] | None = None

    async def __call__(self) -> Message:
        """Return the next message."""
        if self._messages:
            return self._messages.popleft()
        if self._next is None:
            return await self._receive()
        message = await asyncio.shield(self._next)  # an application may cancel this, and ask again
        self._next = None
        return message

    async def until_gone(self, acquiring: Awaitable[AsyncPermit]) -> AsyncPermit | None:
        """Await a permit; return None if the client goes before that. Of a body one part is read ahead at most."""
        waiting = asyncio.ensure_future(acquiring)
        try:
            while not waiting.done() and not await self._is_gone(waiting):
                pass
        except BaseException:
            self._later(_give_back(waiting))
            raise
        if waiting.done():
            return waiting.result()
        self._later(_give_back(waiting))
        return None

    async def _is_gone(self, waiting: asyncio.Future[AsyncPermit]) -> bool:
        """Wait for a permit, and for the next message; return whether that says that the client has gone."""
        if self._messages and self._messages[-1].get("more_body", False):
            await asyncio.wait({waiting})
            return False
        if self._next is None:
            self._next = start_task(_message(self._receive))
        either: set[asyncio.Future[Any]] = {waiting, self._next}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self._next.done():
            self._messages.append(self._next.result())
            self._next = None
        return bool(self._messages) and self._messages[-1]["type"] == "http.disconnect"

    def close(self) -> None:
        """Stop reading ahead."""
        if self._next is not None:
            self._next.cancel()


async def _message(receive: Receive) -> Message:
    return await receive()


async def _give_back(waiting: asyncio.Future[AsyncPermit]) -> None:
    """End a wait in line, and release the permit that it may have got at the last moment."""
    waiting.cancel()
    await asyncio.wait({waiting})
    if not waiting.cancelled() and waiting.exception() is None:
        await waiting.result().__aexit__(None, None, None)


# --- the dependency of FastAPI ------------------------------------------------------------------------------------


def rate_limit(
    limiter: AsyncRateLimiter,
    *,
    key: Key = client_ip,
    costs: Costs | None = None,
    max_wait: float = 0.0,
) -> Callable[..., AsyncIterator[None]]:
    """Return a dependency for FastAPI that limits the requests of a route, a router or an application.

    ``@app.get("/", dependencies=[Depends(rate_limit(limiter))])``. An allowed request's response gets the fields of
    `RateLimitMiddleware`, unless the route returns a `Response` of its own. A denied request raises an
    ``HTTPException`` with the status 429, or 503 while the backend is away, and the same fields; the application's
    handler of that exception makes the body. The slot of a `Concurrency` limit is held until the response was sent.

    Arguments:
        limiter: As for `RateLimitMiddleware`, as are all arguments.
        key: Also gets the scope.
        costs: Also gets the scope.
        max_wait: Seconds that a request may wait in line.

    Raises:
        ImportError: FastAPI isn't installed.
        InvalidArgumentError: An argument can't be used.
        UnsupportedError: The limiter has a `Concurrency`, and FastAPI is older than 0.118: it would release the slot
            before the response is sent. Use `RateLimitMiddleware` there.

    Example:
        >>> import ailf
        >>> from fastapi import Depends, FastAPI
        >>> from ailf.bridges.asgi import header, rate_limit
        >>> backend = ailf.connect_async("memory://")
        >>> limited = rate_limit(backend.rate_limiter("search", "10/minute"), key=header("x-api-key"))
        >>> app = FastAPI()
        >>> @app.get("/search", dependencies=[Depends(limited)])
        ... async def search() -> dict[str, str]:
        ...     return {"found": "nothing"}
    """
    try:
        import fastapi  # noqa: PLC0415 - only here: the middleware needs no framework
        from fastapi.requests import HTTPConnection  # noqa: PLC0415 - as above
    except ModuleNotFoundError as error:
        raise ImportError("ailf.bridges.asgi.rate_limit needs FastAPI: pip install fastapi", name="fastapi") from error
    gate = Gate(limiter, key, costs, max_wait)
    if gate.holds and tuple(int(part) for part in fastapi.__version__.split(".")[:2]) < RESPONSE_FIRST:
        raise UnsupportedError(
            f"FastAPI {fastapi.__version__} ends a dependency before the response is sent, so that a Concurrency limit "
            "would count nothing; update it to 0.118, or use RateLimitMiddleware"
        )

    async def limited(connection: Any, response: Any) -> AsyncIterator[None]:
        admission = await gate.admit(connection.scope, _permit)
        assert admission is not None, "`_permit` waits to the end"  # noqa: S101 - for mypy
        if admission.status:
            raise fastapi.HTTPException(admission.status, admission.problem["detail"], admission.headers)
        for name, value in admission.headers.items():
            response.headers.append(name, value)
        try:
            yield
        finally:
            await gate.release(admission)

    # FastAPI passes what the annotations name.
    limited.__annotations__.update(connection=HTTPConnection, response=fastapi.Response)
    return limited


async def _permit(acquiring: Awaitable[AsyncPermit]) -> AsyncPermit | None:
    return await acquiring
