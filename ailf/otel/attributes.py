"""The names of spans, and the attributes of spans and metrics, by the semantic conventions for messaging."""

from collections.abc import Iterable
from typing import Any, Final

from ailf.errors import InvalidArgumentError
from ailf.instruments import Destination
from ailf.labels import Labels
from ailf.urls import split_url

__all__ = ["SCHEMA_URL", "Attributes", "Naming", "of_message", "operation_of"]

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"
"""The version of the semantic conventions that names of spans, metrics and attributes are from."""

MOST_SERVERS: Final = 64
"""The number of backends whose addresses are known."""

SYSTEMS: Final = {"rediss": "redis", "unix": "redis"}
"""The messaging systems of URL schemes that are not called like theirs."""

Attributes = dict[str, Any]


class Naming:
    """The names and attributes of one instrument."""

    def __init__(self, names: Iterable[str]) -> None:
        self.labels = Labels(names)
        self._servers: dict[str, Attributes] = {}

    def span_name(self, operation: str, destination: Destination) -> str:
        """Return the name of a span."""
        name = self.labels.name(destination.kind, destination.name)
        return f"{operation} {name}" if name else operation

    def of_span(self, destination: Destination, operation: str, type_: str) -> Attributes:
        """Return the attributes of a span that are known when it starts."""
        attributes = {
            **self.server(destination.backend),
            "messaging.operation.name": operation,
            "messaging.operation.type": type_,
            "ailf.kind": destination.kind,
        }
        if destination.kind == "stream":
            attributes["messaging.destination.name"] = destination.name
        return attributes

    def of_metric(
        self,
        destination: Destination,
        operation: str,
        type_: str,
        group: str = "",
        error: BaseException | None = None,
    ) -> Attributes:
        """Return the attributes of a metric of the conventions."""
        attributes = {
            **self.of_own(destination, group),
            "messaging.operation.name": operation,
            "messaging.operation.type": type_,
        }
        return self.with_error(attributes, error)

    def of_own(self, destination: Destination, group: str) -> Attributes:
        """Return the attributes of a metric of ailf."""
        attributes = {**self.server(destination.backend), "ailf.kind": destination.kind}
        if name := self.labels.name(destination.kind, destination.name):
            attributes["messaging.destination.name"] = name
        if group:
            attributes["messaging.consumer.group.name"] = self.labels.bounded("group", group)
        return attributes

    def with_error(self, attributes: Attributes, error: BaseException | None) -> Attributes:
        """Return attributes with the class of an error, if there is one."""
        return attributes if error is None else {**attributes, "error.type": self.labels.error(error)}

    def server(self, url: str) -> Attributes:
        """Return the messaging system, and the server's address if the URL has one."""
        known = self._servers.get(url)
        if known is None:
            if len(self._servers) >= MOST_SERVERS:
                self._servers.clear()
            known = self._servers[url] = _address_of(url)
        return known


def operation_of(destination: Destination) -> str:
    """Return the name of the operation that sends to a destination."""
    return "add" if destination.kind == "stream" else "publish"


def of_message(group: str, consumer: str, id_: str, attempt: int) -> Attributes:
    """Return the attributes of a span of one message."""
    return {
        "messaging.consumer.group.name": group,
        "messaging.client.id": consumer,
        "messaging.message.id": id_,
        "ailf.message.attempt": attempt,
    }


def _address_of(url: str) -> Attributes:
    """Return the messaging system of a backend, and the address of its server if its URL has one."""
    scheme, _, topology = (url.partition("://")[0] or "ailf").partition("+")
    attributes: Attributes = {"messaging.system": SYSTEMS.get(scheme, scheme)}
    if topology:  # Sentinels or a cluster: the URL has not the address of one server
        return attributes
    try:
        parts = split_url(url)
    except InvalidArgumentError:  # several servers, say
        return attributes
    if parts.host:
        attributes["server.address"] = parts.host
        if parts.port is not None:
            attributes["server.port"] = parts.port
    elif scheme == "unix":
        attributes["server.address"] = parts.path
    return attributes
