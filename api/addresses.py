"""Where webhooks may go: which URLs are taken, and a network that leads to public addresses alone."""

import asyncio
import contextlib
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import httpcore2
from pydantic import HttpUrl, TypeAdapter, ValidationError

from tasks.parts.problems import Invalid, Problem

_PLACE = ("webhook", "url")
_URL = TypeAdapter(HttpUrl)
_UNICAST = IPv6Network("2000::/3")
_TRANSLATED = IPv6Network("64:ff9b::/96")
"""NAT64: IPv4 addresses as a host without IPv4 sees them."""
_TUNNELS = IPv4Network("192.88.99.0/24"), IPv6Network("2002::/16")
"""6to4, whose addresses lead to IPv4 ones by way of whoever feels responsible."""
_LOOKUPS = 32


class NotPublic(Exception):
    """A host with an address that webhooks must not go to."""


def read_url(url: str, *, private: bool) -> str:
    """The URL of a webhook in the one spelling that everybody reads alike. Raises Invalid.

    `private` also lets http:// and literal private addresses in.
    """
    try:
        read = _URL.validate_python(url)
    except ValidationError as error:
        raise Invalid(Problem(_PLACE, error.errors()[0]["msg"], url, "https://host/path")) from None
    host = (read.host or "").strip("[]")
    schemes = ["https", "http"] if private else ["https"]
    if read.scheme not in schemes:
        raise Invalid(Problem(_PLACE, "this scheme is not allowed here", read.scheme, schemes))
    if read.username or read.password:
        # The name alone: what comes after it is a secret.
        raise Invalid(Problem(_PLACE, "must hold no user and password", read.username, "none"))
    if not private and _is_literal(host) and not is_public(host):
        raise Invalid(Problem(_PLACE, "is not a public address", host, "names, public addresses"))
    return str(read)


def _is_literal(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(ip_address(host))
    return False


def is_public(address: str) -> bool:
    """Whether an address is one of the internet's, wherever it is looked at from."""
    found = _as_routed(ip_address(address))
    if isinstance(found, IPv6Address) and found not in _UNICAST:
        return False
    return found.is_global and not found.is_multicast and not any(found in net for net in _TUNNELS)


def _as_routed(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 one stands for, where packets go to that."""
    if isinstance(address, IPv6Address):
        if address in _TRANSLATED:
            return IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address
    return address


class Network(httpcore2.AsyncNetworkBackend):
    """Looks a host up, and connects to just what it found: public addresses, unless it may be `private`.

    A name server that says something else a moment later is not asked again.
    """

    def __init__(self, *, private: bool) -> None:
        self._private = private
        self._plain = httpcore2.AnyIOBackend()
        # A lookup cannot be broken off; a name server that hangs holds up one of these threads.
        self._lookups = ThreadPoolExecutor(_LOOKUPS, "webhook-lookup")

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """A connection to the first address that answers, each within `timeout` seconds.

        Raises NotPublic if any is not, and what httpcore2 raises.
        """
        failure: Exception = httpcore2.ConnectError("The host has no address.")
        for address in await self._addresses(host, port):
            try:
                return await self._plain.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure

    def close(self) -> None:
        self._lookups.shutdown(wait=False, cancel_futures=True)

    async def _addresses(self, host: str, port: int) -> list[str]:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._lookups, _look_up, host, port)
        except (OSError, UnicodeError):
            raise httpcore2.ConnectError("The host was not found.") from None
        if not self._private and not all(is_public(address) for address in found):
            # Which address it is would tell about the network here.
            raise NotPublic("The host has an address that is not public.")
        return found


def _look_up(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
