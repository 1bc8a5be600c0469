"""Forty agents share one LLM account: they use up its quota, and no call is rejected.

    python examples/llm_quota.py [--url memory://]

The provider is simulated and strict: it rejects calls above its requests per minute, its tokens per minute or its
parallel calls. First the agents call it without a limiter. Then they ask one rate limiter before each call, with an
estimate of the tokens that may be too low or too high, and settle it with the actual usage. A minute lasts a second
here, to keep the example short.
"""

import argparse
import asyncio
import random
import sys
import time
import uuid

import ailf
from ailf.llm import LlmLimits, llm_limits, usage

AGENTS = 40
MINUTE = 1.0
REQUESTS = 120
TOKENS = 60_000
PARALLEL = 20
LATENCY = 0.1
UNLIMITED_MINUTES = 0.5
LIMITED_MINUTES = 4
ENOUGH = 0.9


class TooManyRequestsError(Exception):
    """The error of a client library for the status 429."""


class Bucket:
    """The provider's count of a quota: a token bucket, full at first and refilled evenly."""

    def __init__(self, per_minute: int) -> None:
        self._capacity = per_minute
        self._left = float(per_minute)
        self._at = time.monotonic()

    def left(self) -> float:
        """Return the amount that may be taken now."""
        now = time.monotonic()
        self._left = min(self._capacity, self._left + self._capacity * (now - self._at) / MINUTE)
        self._at = now
        return self._left

    def take(self, amount: int) -> None:
        """Take an amount."""
        self._left -= amount


class Provider:
    """A simulated LLM. It enforces its quotas exactly, when a call arrives."""

    def __init__(self) -> None:
        self._requests, self._tokens = Bucket(REQUESTS), Bucket(TOKENS)
        self._under_way = 0
        self.rejected = 0
        self.served: list[tuple[float, int]] = []

    async def complete(self, prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
        """Return the usage of a call, or reject the call."""
        used = prompt_tokens + completion_tokens
        if self._under_way >= PARALLEL or self._requests.left() < 1 or self._tokens.left() < used:
            self.rejected += 1
            raise TooManyRequestsError
        self._requests.take(1)
        self._tokens.take(used)
        self.served.append((time.monotonic(), used))
        self._under_way += 1
        try:
            await asyncio.sleep(LATENCY * random.uniform(0.5, 1.5))
        finally:
            self._under_way -= 1
        return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": used}

    def filled(self, since: float, until: float) -> tuple[float, float]:
        """Return the shares of the requests and tokens of a period that were used."""
        served = [used for at, used in self.served if since <= at < until]
        minutes = (until - since) / MINUTE
        return len(served) / (REQUESTS * minutes), sum(served) / (TOKENS * minutes)


def a_call() -> tuple[int, int, int]:
    """Return the tokens of a prompt and of its completion, and an agent's estimate of their sum."""
    prompt, completion = random.randint(100, 500), random.randint(50, 550)
    return prompt, completion, prompt + random.choice([100, 300, 500])


async def rash_agent(provider: Provider, until: float) -> None:
    """Call the provider repeatedly."""
    while time.monotonic() < until:
        prompt, completion, _ = a_call()
        try:
            await provider.complete(prompt, completion)
        except TooManyRequestsError:
            await asyncio.sleep(LATENCY)


async def agent(provider: Provider, limiter: ailf.AsyncRateLimiter, until: float) -> None:
    """Call the provider repeatedly, whenever the limiter allows it."""
    while time.monotonic() < until:
        prompt, completion, estimate = a_call()
        async with limiter.hold(tokens=estimate) as permit:
            reported = await provider.complete(prompt, completion)
            await permit.settle(**usage(reported, permit.limits))


def our_limits() -> LlmLimits:
    """Return the limits of this program.

    The rates are those of the provider, so that the whole quota can be used. The bursts are half of the provider's, as
    a margin: calls may arrive at the provider closer together than the limiter allowed them, and a call whose estimate
    was too low is charged the rest only when it ends.
    """
    return llm_limits(
        requests=f"{REQUESTS}/{MINUTE:g}s burst {REQUESTS // 2}",
        tokens=f"{TOKENS}/{MINUTE:g}s burst {TOKENS // 2}",
        parallel=PARALLEL,
    )


async def without() -> int:
    """Run the agents without a limiter; return the number of rejected calls."""
    provider = Provider()
    until = time.monotonic() + UNLIMITED_MINUTES * MINUTE
    await asyncio.gather(*(rash_agent(provider, until) for _ in range(AGENTS)))
    print(f"without a limiter: {len(provider.served)} calls were served, and {provider.rejected} rejected")
    return provider.rejected


async def within(url: str) -> bool:
    """Run the agents with a limiter; return whether they used up the quota without a rejection."""
    async with ailf.connect_async(url) as backend:
        limiter = backend.rate_limiter(f"provider-{uuid.uuid4().hex[:8]}", **our_limits())
        provider = Provider()
        since = time.monotonic() + MINUTE  # skip the first minute: its bursts would make the result look better
        until = since + LIMITED_MINUTES * MINUTE
        results = await asyncio.gather(
            *(agent(provider, limiter, until) for _ in range(AGENTS)), return_exceptions=True
        )
    if failures := [each for each in results if isinstance(each, Exception)]:
        print(f"with a limiter: {len(failures)} agents failed, the first with {failures[0]!r}")
    requests, tokens = provider.filled(since, until)
    print(
        f"with a limiter on {backend.url}: {len(provider.served)} calls were served, and {provider.rejected} rejected"
    )
    print(f"of its quotas {tokens:.1%} of the tokens and {requests:.1%} of the requests were used")
    return not failures and provider.rejected == 0 and max(requests, tokens) >= ENOUGH


async def show(url: str) -> int:
    """Show both; return 0 if the provider rejected calls without the limiter and none with it."""
    strict = await without() > 0
    return 0 if await within(url) and strict else 1


def main() -> int:
    """Parse the arguments and run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="memory://")
    return asyncio.run(show(parser.parse_args().url))


if __name__ == "__main__":
    sys.exit(main())
