"""
Which addresses the token may be sent to.

`BASE_URL` is set by people, and a wrong one sends a credential to a stranger. So it is judged on
the parsed host, never by prefix or substring (`http://localhost.evil`, `https://api.github.com@evil`),
and whatever two parsers could read in two ways is refused instead of repaired. Settings call
`check_base_url`, then `normalise_base_url`; both are pure.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import SplitResult, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["check_base_url", "normalise_base_url"]

_T = TypeVar("_T")
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_DEFAULT_PORTS: Final = {"https": 443, "http": 80}
_HOST_LENGTH: Final = 253
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")

# 127.1, 2130706433 and 0x7f.1 are addresses to a resolver and names to a parser; what ends in a
# number is an address (https://url.spec.whatwg.org/#ends-in-a-number-checker).
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")

_PLAIN_HTTP_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_PLAIN_HTTP_SUFFIXES: Final = (".svc", ".svc.cluster.local")

# Where clouds hand credentials to whoever asks, besides the link-local 169.254.0.0/16.
_METADATA_NAMES: Final = frozenset({"metadata.google.internal", "metadata.goog"})
_METADATA_ADDRESSES: Final[frozenset[_Address]] = frozenset(
    ipaddress.ip_address(address)
    for address in (
        "100.100.100.200",  # Alibaba Cloud
        "168.63.129.16",  # Azure
        "192.0.0.192",  # Oracle Cloud
        "fd00:ec2::254",  # AWS
        "fd20:ce::254",  # Google Cloud
    )
)
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are IPv4


def check_base_url(text: str) -> str | None:
    """Return why no token may be sent to this host or URL, or None when it may."""
    if (reason := _broken(_TEXT_RULES, text)) is not None:
        return reason
    try:
        parts = _split(text)
        spelt = _authority(parts)
    except ValueError:
        return "its host or port can't be read"
    if (reason := _broken(_PARTS_RULES, parts)) is not None:
        return reason
    if parts.netloc.lower() != spelt:
        return "its host or port can't be read"
    return _check_host(parts.hostname or "", scheme=parts.scheme)


def normalise_base_url(text: str) -> str:
    """
    Return a checked address as `scheme://host[:port]`, in lower case and without trailing slash.

    The port is left out where it is the scheme's own, so that one API has one spelling.
    """
    parts = _split(text)
    if parts.port == _DEFAULT_PORTS[parts.scheme]:
        parts = parts._replace(netloc=parts.netloc.rpartition(":")[0])
    return f"{parts.scheme}://{_authority(parts)}"


def _split(text: str) -> SplitResult:
    return urlsplit(text if "://" in text else f"https://{text}")


def _authority(parts: SplitResult) -> str:
    """Return `host[:port]` as it must have been spelt; raise ValueError for a port that is none."""
    host = parts.hostname or ""
    bracketed = f"[{host}]" if ":" in host else host
    return bracketed if parts.port is None else f"{bracketed}:{parts.port}"


_TEXT_RULES: Final[tuple[tuple[Callable[[str], bool], str], ...]] = (
    (
        lambda text: any(not "!" <= char <= "~" for char in text),
        "it holds white space, control or non-ASCII characters",
    ),
    (lambda text: "\\" in text or "%" in text, "it holds a backslash or a percent sign"),
    (lambda text: "?" in text or "#" in text, "it has a query or a fragment"),
    (lambda text: "@" in text, "it has a user name or password; the token belongs in API_TOKEN"),
)

_PARTS_RULES: Final[tuple[tuple[Callable[[SplitResult], bool], str], ...]] = (
    (lambda parts: parts.scheme not in _DEFAULT_PORTS, "its scheme is not https"),
    (
        lambda parts: parts.path not in {"", "/"},
        "it has a path (GitHub Enterprise Server does not offer this API)",
    ),
    (lambda parts: not parts.hostname, "it names no host"),
    (lambda parts: parts.port == 0, "port 0 can't be reached"),
)

_NAME_RULES: Final[tuple[tuple[Callable[[str], bool], str], ...]] = (
    (lambda host: host.endswith("."), "its host ends in a dot"),
    (
        lambda host: (
            len(host) > _HOST_LENGTH
            or not all(_LABEL.fullmatch(label) for label in host.split("."))
        ),
        "its host is not a host name",
    ),
    (
        lambda host: any(label.startswith("xn--") for label in host.split(".")),
        "its host is an internationalised name, which can look like another's",
    ),
    (
        lambda host: _NUMBER.fullmatch(host.rpartition(".")[2]) is not None,
        "an IPv4 address is written as four plain decimal numbers",
    ),
    (lambda host: host in _METADATA_NAMES, "its host is a cloud's metadata service"),
)

_ADDRESS_RULES: Final[tuple[tuple[Callable[[_Address], bool], str], ...]] = (
    (
        lambda address: address.is_link_local or address in _METADATA_ADDRESSES,
        "its host is a link-local or cloud metadata address",
    ),
    (
        lambda address: address.is_unspecified or address.is_multicast,
        "its host is not the address of one machine",
    ),
)


def _broken(rules: Iterable[tuple[Callable[[_T], bool], str]], value: _T) -> str | None:
    """Return the reason of the first rule that `value` breaks."""
    return next((reason for breaks, reason in rules if breaks(value)), None)


def _check_host(host: str, *, scheme: str) -> str | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        reason = _broken(_NAME_RULES, host)
    else:
        meanings = (address, *_embedded(address))
        reasons = (_broken(_ADDRESS_RULES, meaning) for meaning in meanings)
        reason = next((found for found in reasons if found is not None), None)
    plain = host in _PLAIN_HTTP_HOSTS or host.endswith(_PLAIN_HTTP_SUFFIXES)
    if reason is None and scheme == "http" and not plain:
        return (
            "http would send the token in the clear: it is only for localhost, 127.0.0.1, ::1 and "
            "hosts that end in .svc or .svc.cluster.local"
        )
    return reason


def _embedded(address: _Address) -> tuple[_Address, ...]:
    """Return the IPv4 addresses that an IPv6 address stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return ()
    number = int(address)
    last = ipaddress.IPv4Address(number & 0xFFFF_FFFF)
    # ::a.b.c.d, the old "compatible" form; :: and ::1 are themselves.
    compatible = last if 1 < number <= 0xFFFF_FFFF else None  # noqa: PLR2004 - 32 bits
    candidates = (
        address.ipv4_mapped,
        address.sixtofour,
        *(address.teredo or ()),
        last if address in _NAT64 else None,
        compatible,
    )
    return tuple(candidate for candidate in candidates if candidate is not None)
