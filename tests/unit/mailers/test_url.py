"""The parts of one URL."""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from urllib.parse import urlsplit

import hypothesis
import pytest
from hypothesis import strategies as st
from pyramid.exceptions import ConfigurationError

from pyramid_sendmail.mailers.url import parse_url


def host_name(host: str) -> str | None:
    """Return a host name as IDNA writes it, or None if it is none."""
    try:
        encoded = host.encode('idna').decode('ascii')
        encoded = encoded if host.isascii() else encoded.lower()
    except UnicodeError:
        return None
    is_name = re.fullmatch(r'(?![-.])[A-Za-z0-9._-]+(?<!-)(?<!-\.)', encoded)
    return encoded if is_name and '..' not in encoded else None


def host_and_port(place: str) -> tuple[str, int] | None:
    """Return what the standard library finds in HOST:PORT, or None if it is not usable."""
    try:
        parts = urlsplit(f'smtp://{place}')
        port = 25 if parts.port is None else parts.port
        if place.startswith('['):
            shape, host = r'\[[^][]*\](?::.+)?', str(IPv6Address(parts.hostname or ''))
        else:
            shape, host = r'[^][:]+(?::.+)?', host_name(parts.hostname or '') or ''
    except ValueError:
        return None
    return (host, port) if host and port and re.fullmatch(shape, place) else None


@hypothesis.given(st.text('aZ.9-é', max_size=70))
@hypothesis.example('a' * 63)
@hypothesis.example('a' * 64)
@hypothesis.example('a..b')
@hypothesis.example('.a')
@hypothesis.example('')
def test_a_host_is_what_idna_makes_of_it(host: str) -> None:
    """The codec is not asked about an ASCII name, and would leave it as it is."""
    encoded = host_name(host)
    if encoded is None:
        with pytest.raises(ConfigurationError):
            parse_url(f'smtp://{host}').host_and_port(25)
    else:
        assert parse_url(f'smtp://{host}').host_and_port(25) == (encoded, 25)


@pytest.mark.parametrize(
    ('host', 'found'),
    [
        ('mail.straße.example', 'mail.xn--strae-oqa.example'),
        ('faß.de', 'xn--fa-hia.de'),
        ('ελλάδας.gr', 'xn--hxakic4aa6c.gr'),
        ('क्\u200dष.in', 'xn--11b2ezcw70k.in'),
    ],
)
def test_a_host_is_not_that_of_another_owner(host: str, found: str) -> None:
    """IDNA 2008 keeps ß, ς and joiners, which IDNA 2003 mapped: to strasse.example, for one."""
    assert parse_url(f'smtp://{host}').host_and_port(25) == (found, 25)


@pytest.mark.parametrize('host', ['a\u200db.é', 'xn--é.de', 'é' * 64, 'é\u00adé.de'])
def test_a_host_without_a_certain_form(host: str) -> None:
    """A host that could mean two names is refused, and the text does not show it."""
    with pytest.raises(ConfigurationError, match=r'IDNA 2008.*write it as xn--') as caught:
        parse_url(f'smtp://{host}').host_and_port(25)
    assert host not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ('text', 'found'),
    [
        ('fe80::1%25eth0', 'fe80::1%eth0'),
        ('fe80::1%eth0', 'fe80::1%eth0'),
        ('fe80::1%2525', 'fe80::1%25'),
        ('FE80:0::1%25wlan%2D0.1', 'fe80::1%wlan-0.1'),
    ],
)
def test_zone(text: str, found: str) -> None:
    """The zone of a link-local address stands behind %25 (RFC 6874)."""
    assert parse_url(f'smtp://[{text}]:26').host_and_port(25) == (found, 26)


@pytest.mark.parametrize('text', ['fe80::1%', 'fe80::1%25', 'fe80::1%25a%20b', 'fe80::1%25a%25b'])
def test_bad_zone(text: str) -> None:
    """A zone is the name of an interface."""
    with pytest.raises(ConfigurationError, match=r'zone.*write the name of an interface'):
        parse_url(f'smtp://[{text}]').host_and_port(25)


@hypothesis.given(st.text('aZ1+.-_:/?[]é%', max_size=12))
@hypothesis.example('smtp://relay')
@hypothesis.example('smtp://relay?')
@hypothesis.example('smtp://[::1]/a')
def test_a_url_is_split_as_the_standard_library_does(url: str) -> None:
    """Into scheme, authority and path; nothing is refused but '' and an option without a value."""
    if not url or url.partition('?')[2]:
        with pytest.raises(ConfigurationError):
            parse_url(url)
        return
    ours = parse_url(url)
    try:
        parts = urlsplit(url)
    except ValueError:
        # About brackets, which host_and_port refuses here.
        assert '[' in url or ']' in url
    else:
        assert (ours.scheme, ours.authority or '', ours.path) == parts[:3]


@hypothesis.given(st.text('aZ19._-:[]é', max_size=8) | st.just('[::1]:25') | st.just('relay:25'))
@hypothesis.example('relay')
@hypothesis.example('relay:')
@hypothesis.example('relay:0')
@hypothesis.example('relay:65535')
@hypothesis.example('relay:65536')
@hypothesis.example('[::1]')
@hypothesis.example('[::1]9')
@hypothesis.example('[a]')
def test_a_host_is_split_as_the_standard_library_does(place: str) -> None:
    """Into a name and a port; what it refuses, and no more, is refused here."""
    expected = host_and_port(place)
    if expected is None:
        with pytest.raises(ConfigurationError):
            parse_url(f'smtp://{place}').host_and_port(25)
    else:
        host, port = parse_url(f'smtp://{place}').host_and_port(25)
        assert (host.lower(), port) == expected
