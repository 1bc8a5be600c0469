"""OpenTelemetry: spans and metrics of what a backend's interfaces do, by the semantic conventions for messaging 1.44.

>>> import ailf
>>> from ailf.otel import OpenTelemetry
>>> telemetry = OpenTelemetry()
>>> with ailf.connect("memory://", instruments=[telemetry]) as backend:
...     first = backend.stream("tasks").add("a task of the current trace")

It needs the extra ``otel``: ``pip install "ailf[otel]"``. A program also sets up the SDK; without it nothing is
recorded.

The context of the span of a send is the message's creation context: it travels in the headers, by the global
propagator. The span of a handler is its child and links to it, to the earlier attempts that ran in this process, and to
the span in whose scope the worker runs. A batch has one span, which links to the creation contexts of its messages.

The conventions for messaging are in development: a later version of ailf may follow a later version of them.
"""

from ailf.otel.attributes import SCHEMA_URL
from ailf.otel.instrument import OpenTelemetry

__all__ = ["SCHEMA_URL", "OpenTelemetry"]
