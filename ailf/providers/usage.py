"""Reported usage as costs, for every provider's names of the counts."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from ailf.checks import check_count
from ailf.errors import InvalidArgumentError

__all__ = ["COUNTS", "usage"]

COUNTS: Final = ("tokens", "input_tokens", "output_tokens")
NESTED: Final = ("tokens", "billed_units")
"""Where Cohere has the counts: all tokens, and those that it bills."""
SENT: Final = (  # for each provider, names whose values are added up if the first one is reported
    ("input_tokens", "cache_creation_input_tokens"),
    ("prompt_tokens",),
    ("inputTokens", "cacheWriteInputTokens"),
    ("promptTokenCount", "toolUsePromptTokenCount"),
    ("prompt_token_count", "tool_use_prompt_token_count"),
    ("inputTokenCount", "cacheWriteInputTokenCount"),
)
GENERATED: Final = (
    ("output_tokens",),
    ("completion_tokens",),
    ("outputTokens",),
    ("outputTokenCount",),
    ("candidatesTokenCount", "thoughtsTokenCount"),
    ("thoughtsTokenCount",),  # the answer was cut off during the thoughts
    ("candidates_token_count", "thoughts_token_count"),
    ("thoughts_token_count",),
)
TOTAL: Final = (("total_tokens",), ("totalTokens",), ("totalTokenCount",), ("total_token_count",))


def usage(reported: object, names: Iterable[str] = COUNTS) -> dict[str, int]:
    """Return the reported usage of a call as costs, for ``permit.settle(**usage(response.usage, permit.limits))``.

    It reads OpenAI's ``prompt_tokens``, ``completion_tokens`` and ``total_tokens``; the ``input_tokens`` and
    ``output_tokens`` of Anthropic and of OpenAI's Responses API; Bedrock's ``inputTokens``, ``outputTokens`` and
    ``totalTokens``, and its ``inputTokenCount`` and ``outputTokenCount``; Cohere's ``tokens`` and ``billed_units``; and
    the ``usageMetadata`` of Gemini and Vertex AI: ``promptTokenCount``, ``candidatesTokenCount``,
    ``thoughtsTokenCount`` and ``totalTokenCount``, or ``prompt_token_count``, … as in their Python library.

    Tokens that are written to a cache count as input (``cache_creation_input_tokens``, ``cacheWriteInputTokens``).
    Tokens that are read from a cache and reported separately don't count, since most models don't count them towards a
    limit. Thoughts count as output. If no total is reported, ``tokens`` is the sum of input and output.

    Arguments:
        reported: The usage in a provider's response: an object with these attributes, or a mapping. None if the
            provider reported none: then there is nothing to settle, and the estimates stay.
        names: Which of the costs ``tokens``, ``input_tokens`` and ``output_tokens`` to return. Other names are ignored,
            so a permit's ``limits`` can be passed; they are empty if the call was allowed without the backend.

    Returns:
        The costs in ``names`` that the provider reported.

    Raises:
        InvalidArgumentError: ``reported`` has none of these counts, or a count isn't a whole number.
    """
    if not reported:
        return {}
    reported = _unnested(reported)
    sent, out, total = (_sum(reported, kinds) for kinds in (SENT, GENERATED, TOTAL))
    if (sent, out, total) == (None, None, None):
        fields = ", ".join(names[0] for names in (*SENT, *GENERATED, *TOTAL))
        raise InvalidArgumentError(
            f"{type(reported).__name__} has none of {fields}; give the usage of a provider's response, such as "
            "response.usage or response.usage_metadata"
        )
    costs = dict(zip(COUNTS, ((sent or 0) + (out or 0) if total is None else total, sent, out), strict=True))
    wanted = {names} if isinstance(names, str) else set(names)
    return {name: count for name, count in costs.items() if count is not None and name in wanted}


def _field(reported: object, name: str) -> Any:
    return reported.get(name) if isinstance(reported, Mapping) else getattr(reported, name, None)


def _unnested(reported: object) -> object:
    """Return the object that has the counts: the report itself, or, of Cohere's, the one inside."""
    for name in NESTED:
        inner = _field(reported, name)
        if isinstance(inner, Mapping) or hasattr(inner, "input_tokens"):
            return inner
    return reported


def _count(reported: object, name: str) -> int | None:
    count = _field(reported, name)
    if isinstance(count, float) and count.is_integer():  # Cohere's counts are numbers like 18.0
        count = int(count)
    return None if count is None else check_count(f"the reported {name}", count, least=0)


def _sum(reported: object, kinds: Iterable[tuple[str, ...]]) -> int | None:
    """Return the sum of the counts under the names of the first provider that matches; None if none does."""
    for first, *others in kinds:
        count = _count(reported, first)
        if count is not None:
            return count + sum(_count(reported, name) or 0 for name in others)
    return None
