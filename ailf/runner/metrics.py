"""The metrics of all workers as one Prometheus text. Each worker has a registry of its own, and nothing is summed.

Each sample gets the label ``worker``, and the samples of one metric stand together, as the format wants it. Prometheus
sums where that makes sense: a sum of gauges, or of quantiles, would be wrong. This is pure.
"""

import re
from collections.abc import Mapping

__all__ = ["merge"]

SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(?P<labels>.*)\})?(?P<rest> [^\s{}]+(?: -?\d+)?)$")
COMMENT = re.compile(r"^# (?P<kind>HELP|TYPE|UNIT) (?P<name>\S+)")

SUFFIXES = ("_total", "_created", "_bucket", "_count", "_sum", "_info")
"""What the name of a sample has behind that of its metric."""


def merge(texts: Mapping[str, str]) -> str:
    """Return one text of the texts of all workers.

    Arguments:
        texts: The text of each worker, by the value of its label ``worker``.
    """
    comments: dict[str, dict[str, str]] = {}
    samples: dict[str, list[str]] = {}
    for worker, text in texts.items():
        for line in text.splitlines():
            if comment := COMMENT.match(line):
                comments.setdefault(comment["name"], {}).setdefault(comment["kind"], line)
            elif sample := SAMPLE.match(line):
                samples.setdefault(_metric(sample["name"], comments), []).append(_labelled(sample, worker))
    lines = []
    for metric in dict.fromkeys([*comments, *samples]):
        if metric in samples:
            lines += [*comments.get(metric, {}).values(), *samples[metric]]
    return "".join(f"{line}\n" for line in lines)


def _metric(name: str, known: Mapping[str, object]) -> str:
    """Return the metric to which a sample belongs."""
    if name in known:
        return name
    bases = [name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)]
    return next((base for base in bases if base in known), name)


def _labelled(sample: "re.Match[str]", worker: str) -> str:
    labels = sample["labels"]
    return f'{sample["name"]}{{worker="{worker}"{f",{labels}" if labels else ""}}}{sample["rest"]}'
