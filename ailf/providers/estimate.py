"""The tokens that a request will cost, estimated from its body before it is sent."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal, get_args

import msgspec

from ailf.errors import InvalidArgumentError

__all__ = ["Provider", "check_provider", "estimated", "model_of", "tokens_of"]

Provider = Literal[
    "anthropic", "azure", "bedrock", "cohere", "gemini", "groq", "litellm", "mistral", "openai", "openrouter", "vllm"
]

INPUTS: Final = (  # the fields of a body that are read by the model
    *("messages", "input", "prompt", "contents", "system", "instructions", "systemInstruction", "system_instruction"),
    *("tools", "functions", "toolConfig", "documents", "message", "chat_history", "preamble", "texts", "query"),
    *("response_format", "text", "content", "requests"),
)
OUTPUTS: Final = ("max_completion_tokens", "max_output_tokens", "max_tokens", "max_tokens_to_sample", "maxTokens")
NESTED_OUTPUTS: Final = (("generationConfig", "maxOutputTokens"), ("inferenceConfig", "maxTokens"))
NO_TEXT: Final = frozenset({"type", "role", "model", "id", "tool_call_id", "tool_use_id", "mimeType", "media_type"})
MEDIA_KEYS: Final = {  # fields that hold an image, a sound or a document instead of text
    "image_url": "image",
    "source": "image",
    "inlineData": "image",
    "inline_data": "image",
    "fileData": "image",
    "image": "image",
    "input_audio": "audio",
    "file_data": "document",
    "file": "document",
    "document": "document",
}
SCHEMAS: Final = frozenset({"tools", "functions", "toolConfig", "response_format"})
IMAGE: Final = {"anthropic": 1_600, "gemini": 1_290, "mistral": 1_600}
MEDIA: Final = {"image": 1_105, "audio": 1_000, "document": 3_000}
PER_MESSAGE: Final = 4
DEFAULT_OUTPUT: Final = 500
"""The tokens of an answer if the request doesn't limit them."""
NO_ANSWER: Final = re.compile(r"/(?:embeddings?|embed|rerank|moderations)\b|:(?:batchEmbedContents|embedContent)$")
NO_COST: Final = re.compile(r"/(?:count_tokens|tokenize|detokenize)$|:countTokens$")
_MODEL = re.compile(r"/(?:models?|deployments)/([^/:?]+(?:%3A[^/:?]+)*)(?:[/:]|$)")


def check_provider(provider: object) -> None:
    """Raise for a name that isn't a provider's.

    Raises:
        InvalidArgumentError: There is no such provider.
    """
    names = get_args(Provider)
    if provider not in names:
        raise InvalidArgumentError(
            f"the provider must be one of {', '.join(names)}, not {provider!r}; for another one give a limiter to "
            "QuotaTransport"
        )


def tokens_of(text: str) -> int:
    """Return about how many tokens a text has: a quarter of its ASCII characters, and the others by their bytes."""
    characters = len(text)
    others = 0 if text.isascii() else (len(text.encode(errors="replace")) - characters + 1) // 2
    return (max(0, characters - others) + 3) // 4 + others


def estimated(
    body: bytes | Mapping[str, Any],
    *,
    path: str = "",
    provider: Provider | None = None,
    count: Callable[[str], int] = tokens_of,
    output: int = DEFAULT_OUTPUT,
) -> dict[str, int]:
    """Return the costs ``tokens``, ``input_tokens`` and ``output_tokens`` that a request will probably have.

    The input is counted from all texts of messages, system prompt, tools and schemas, with a fixed number for each
    image, sound and document. The output is the limit that the request sets (``max_tokens`` and its other names), times
    the number of answers (``n``). It is an upper bound where a limit is set, since providers count so too, or charge
    for less only afterwards; settle it by the reported usage.

    Arguments:
        body: The request's body, as JSON or decoded. One that is no JSON object, such as an upload, costs no tokens.
        path: The path of its URL: requests for embeddings have no output.
        provider: Whose numbers count for an image; None for OpenAI's.
        count: Returns the number of tokens of a text; by default about a quarter of its characters. Give the tokenizer
            of the model, if you have it.
        output: The tokens of an answer if the request sets no limit.

    Example:
        >>> from ailf.llm import estimated
        >>> estimated({"model": "gpt", "messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 100})
        {'tokens': 107, 'input_tokens': 7, 'output_tokens': 100}
    """
    told = _decoded(body)
    if not told or NO_COST.search(path):
        return {"tokens": 0, "input_tokens": 0, "output_tokens": 0}
    image = IMAGE.get(provider or "", MEDIA["image"])
    sent = 0
    for name in INPUTS:
        for kind, text in _parts(told.get(name), name):
            if kind == "text":
                sent += count(text)
            else:
                sent += image if kind == "image" else MEDIA.get(kind, PER_MESSAGE)
    sent += sum(_token_ids(told.get(name)) for name in ("input", "prompt"))
    answers = 0 if NO_ANSWER.search(path) else _most_output(told, output)
    return {"tokens": sent + answers, "input_tokens": sent, "output_tokens": answers}


def model_of(body: bytes | Mapping[str, Any], path: str = "") -> str:
    """Return the model that a request names, in its body or in its path; "" if it names none.

    Example:
        >>> from ailf.llm import model_of
        >>> model_of(b"{}", "/v1beta/models/gemini-pro:generateContent")
        'gemini-pro'
    """
    told = _decoded(body)
    model = told.get("model") if told else None
    if isinstance(model, str) and model:
        return model
    found = _MODEL.search(path)
    return found[1] if found else ""


def _decoded(body: bytes | Mapping[str, Any]) -> Mapping[str, Any] | None:
    if isinstance(body, Mapping):
        return body
    try:
        told = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return told if isinstance(told, dict) else None


def _parts(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield what of a value the model reads: ``("text", …)``, or the kind of a medium, or ``("message", "")``."""
    waiting = [(value, name)]
    while waiting:
        each, field = waiting.pop()
        if isinstance(each, str):
            if field not in NO_TEXT:
                yield "text", each
        elif isinstance(each, list):
            waiting += [(one, field) for one in each]
        elif isinstance(each, dict):
            kind = str(each.get("type", ""))
            medium = next((MEDIA_KEYS[key] for key in each if key in MEDIA_KEYS and not _is_text(each[key])), "")
            if medium and field not in SCHEMAS:
                yield next((one for one in MEDIA if one in kind), medium), ""
                continue
            if "role" in each:
                yield "message", ""
            if field in SCHEMAS:
                yield from (("text", str(key)) for key in each)  # the names of a schema are read too
            waiting += [(one, "tools" if field in SCHEMAS else str(key)) for key, one in each.items()]


def _is_text(value: Any) -> bool:
    """Return whether a field that may hold a medium holds a text document (Anthropic) or text parts instead."""
    return isinstance(value, dict) and value.get("type") in {"text", "content"}


def _token_ids(value: Any) -> int:
    """Return the number of token ids in an input that is tokenized already."""
    if not isinstance(value, list):
        return 0
    return sum(1 for each in value if type(each) is int) + sum(
        len(each) for each in value if isinstance(each, list) and each and type(each[0]) is int
    )


def _most_output(body: Mapping[str, Any], default: int) -> int:
    limits = [body.get(name) for name in OUTPUTS]
    limits += [inner.get(name) for outer, name in NESTED_OUTPUTS if isinstance(inner := body.get(outer), dict)]
    given = [each for each in limits if type(each) is int and each >= 0]
    choices = body.get("n")
    return (given[0] if given else default) * (choices if type(choices) is int and 1 <= choices <= 128 else 1)  # noqa: PLR2004 - OpenAI's own bound
