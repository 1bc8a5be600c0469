"""TLS: client certificates, verification, and what is said when one side has TLS and the other has none."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest

import ailf
from ailf_redis import RedisBackend, Settings
from tests.support.blackhole import black_hole
from tests.support.servers import Server
from tests.support.tls import HOST, Certificates, Terminator

Open = Callable[..., Any]


def open_blocking(url: str, **options: Any) -> Any:
    """Open a backend, add to a stream and read it."""
    with ailf.connect(url, **options) as backend:
        backend.stream("s").add(1)
        return backend.stream("s").read()[-1].data


def open_asyncio(url: str, **options: Any) -> Any:
    """Do the same on asyncio."""

    async def main() -> Any:
        async with ailf.connect_async(url, **options) as backend:
            await backend.stream("s").add(1)
            return (await backend.stream("s").read())[-1].data

    return asyncio.run(main())


@pytest.fixture(params=[open_blocking, open_asyncio], ids=["blocking", "asyncio"])
def opened(request: pytest.FixtureRequest) -> Open:
    """Use a backend, in a flavour."""
    chosen: Open = request.param
    return chosen


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """The certificates of this module's servers."""
    return Certificates.make(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def tls(certificates: Certificates, any_server: Server) -> Iterator[Terminator]:
    """TLS before the shared server."""
    with Terminator(certificates, any_server.port) as terminator:
        yield terminator


@pytest.fixture(scope="module")
def asking(certificates: Certificates, any_server: Server) -> Iterator[Terminator]:
    """TLS before the shared server, which admits only clients with a certificate."""
    with Terminator(certificates, any_server.port, asks=True) as terminator:
        yield terminator


def options_of(certificates: Certificates, *names: str) -> str:
    """Return options of a URL that name files."""
    files = {
        "tls_ca": certificates.ca,
        "tls_cert": certificates.client_cert,
        "tls_key": certificates.client_key,
    }
    return "&".join(f"{name}={quote(str(files[name]), safe='')}" for name in names)


# --- certificates ------------------------------------------------------------------------------------------------


def test_a_client_certificate(opened: Open, asking: Terminator, certificates: Certificates, namespace: str) -> None:
    """A client identifies itself by `tls_cert` and `tls_key`, in the URL or as keywords; without them it is refused."""
    url = f"rediss://{HOST}:{asking.port}/0"
    named = options_of(certificates, "tls_ca", "tls_cert", "tls_key")
    assert opened(f"{url}?{named}", namespace=namespace) == 1
    keywords = {"tls_cert": str(certificates.client_cert), "tls_key": str(certificates.client_key)}
    assert opened(f"valkeys{url[6:]}?{options_of(certificates, 'tls_ca')}", namespace=namespace, **keywords) == 1
    with pytest.raises(ailf.BackendError, match="rediss://"):
        opened(f"{url}?{options_of(certificates, 'tls_ca')}", namespace=namespace)


def test_verification_is_switched_off_by_the_keyword_only(opened: Open, tls: Terminator, namespace: str) -> None:
    """An unknown authority is refused, unless `tls_verify=False` is passed; a URL can't ask for that."""
    url = f"rediss://127.0.0.1:{tls.port}/0"
    with pytest.raises(ailf.BackendError, match=r"(?i)certificate"):
        opened(url, namespace=namespace)
    assert opened(url, namespace=namespace, tls_verify=False) == 1
    with pytest.raises(ailf.InvalidArgumentError, match="can pass the keyword tls_verify=False"):
        opened(f"{url}?tls_verify=false")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tls_ca": "nowhere"}, "tls_ca '.*nowhere' can't be used: .*No such file"),
        ({"tls_ca": "client_key"}, "tls_ca '.*client_key.pem' can't be used"),
        ({"tls_cert": "nowhere"}, "tls_cert '.*nowhere' can't be used: .*No such file"),
        ({"tls_cert": "client_cert"}, "tls_cert '.*client_cert.pem' can't be used"),
        ({"tls_cert": "client_cert", "tls_key": "key"}, "with tls_key '.*key.pem' can't be used: .*MISMATCH"),
    ],
)
def test_files_are_checked_before_connecting(certificates: Certificates, fields: dict[str, str], says: str) -> None:
    """A file that is missing or wrong is named when the backend is made: OpenSSL alone says neither which nor why."""
    files = {name: str(getattr(certificates, file, certificates.ca.with_name(file))) for name, file in fields.items()}
    with pytest.raises(ailf.InvalidArgumentError, match=says):
        RedisBackend(Settings(tls=True, **files))


# --- one side without TLS ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("credentials", ["", "app:s3cret@"], ids=["no password", "password"])
@pytest.mark.parametrize("asks", [False, True], ids=["admits all", "asks for certificates"])
def test_no_tls_to_a_port_with_tls(
    request: pytest.FixtureRequest, opened: Open, credentials: str, *, asks: bool
) -> None:
    """The error says at once to use rediss://, even if opening may wait."""
    port = request.getfixturevalue("asking" if asks else "tls").port
    begin = time.monotonic()
    with pytest.raises(ailf.ProtocolError, match=rf"{HOST}:{port} expects TLS: .*rediss") as raised:
        opened(f"redis://{credentials}{HOST}:{port}/0", wait=30)
    assert time.monotonic() - begin < 2
    assert not raised.value.maybe_applied
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("scheme", ["redis+sentinel", "redis+cluster"])
def test_no_tls_to_sentinels_and_nodes_with_tls(opened: Open, tls: Terminator, scheme: str) -> None:
    """Sentinels and nodes are asked, too."""
    path = "/crew" if scheme == "redis+sentinel" else ""
    with pytest.raises(ailf.ProtocolError, match=f"{HOST}:{tls.port} expects TLS"):
        opened(f"{scheme}://{HOST}:{tls.port}{path}")


@pytest.mark.parametrize("scheme", ["rediss", "rediss+sentinel", "rediss+cluster"])
def test_tls_to_a_port_without(opened: Open, any_server: Server, scheme: str) -> None:
    """A server without TLS waits for the rest of the handshake; the error comes long before `connect_timeout`."""
    path = "/crew" if scheme == "rediss+sentinel" else ""
    begin = time.monotonic()
    with pytest.raises(ailf.ProtocolError, match=f"{HOST}:{any_server.port} doesn't use TLS: .* redis instead"):
        opened(f"{scheme}://{HOST}:{any_server.port}{path}", wait=30, connect_timeout=20.0, timeout=20.0)
    assert time.monotonic() - begin < 4


def test_a_silent_server_keeps_its_time(opened: Open) -> None:
    """A server that says nothing at all is asked for the reason within `connect_timeout`."""
    with black_hole() as address:
        begin = time.monotonic()
        with pytest.raises(ailf.BackendError) as raised:
            opened(f"rediss://{address[0]}:{address[1]}", connect_timeout=1.5, timeout=1.5)
        assert not isinstance(raised.value, ailf.ProtocolError)
        assert time.monotonic() - begin < 2.5
