"""The parts of one URL."""

from __future__ import annotations

import re
from contextlib import suppress
from urllib.parse import urlsplit

import hypothesis
import pytest
from hypothesis import strategies as st
from pyramid.exceptions import ConfigurationError

from pyramid_sendmail.mailers.url import parse_url


@hypothesis.given(st.text('aZ.9-é', max_size=70))
@hypothesis.example('a' * 63)
@hypothesis.example('a' * 64)
@hypothesis.example('a..b')
@hypothesis.example('.a')
@hypothesis.example('')
def test_a_host_is_what_idna_makes_of_it(host: str) -> None:
    """The codec is not asked about an ASCII name, and would leave it as it is."""
    try:
        encoded = host.encode('idna').decode('ascii')
    except UnicodeError:
        encoded = ''
    if re.fullmatch(r'(?![-.])[A-Za-z0-9.-]+(?<!-)(?<!-\.)', encoded) and '..' not in encoded:
        assert parse_url(f'smtp://{host}').host_and_port(25) == (encoded, 25)
    else:
        with pytest.raises(ConfigurationError):
            parse_url(f'smtp://{host}').host_and_port(25)


@hypothesis.given(st.text('aZ1+.-_:/?[]é%', max_size=12))
@hypothesis.example('smtp://relay')
def test_a_url_is_split_as_the_standard_library_does(url: str) -> None:
    """Into scheme, authority and path."""
    with suppress(ConfigurationError, ValueError):
        parts = urlsplit(url)
        ours = parse_url(url)
        assert (ours.scheme, ours.authority or '', ours.path) == parts[:3]


@hypothesis.given(st.text('aZ19._-:[]é', max_size=8) | st.just('[::1]:25') | st.just('relay:25'))
def test_a_host_is_split_as_the_standard_library_does(place: str) -> None:
    """Into a name and a port; what it refuses, we refuse too."""
    try:
        host, port = parse_url(f'smtp://{place}').host_and_port(25)
    except ConfigurationError:
        return
    parts = urlsplit(f'smtp://{place}')
    assert host.lower() == (parts.hostname or '').encode('idna').decode('ascii')
    assert port == (25 if parts.port is None else parts.port)
