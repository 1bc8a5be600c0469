"""What LLM providers send and how they count: limits, estimates, usage, headers, streams.

All of it is pure; nothing in here waits, and no provider's library is needed.
"""

from ailf.providers.answers import AnswerReader
from ailf.providers.estimate import Provider, estimated, model_of
from ailf.providers.headers import observed, pause
from ailf.providers.limits import LlmLimits, llm_limits
from ailf.providers.usage import usage

__all__ = ["AnswerReader", "LlmLimits", "Provider", "estimated", "llm_limits", "model_of", "observed", "pause", "usage"]
