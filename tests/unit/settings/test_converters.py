"""Converters: the texts that they accept."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid_sendmail.message.attachment import size_text
from pyramid_sendmail.settings import converters


@given(size=st.one_of(st.integers(1, 2**40), st.sampled_from([1023, 1024, 25 * 2**20, 2**30])))
def test_a_size_is_shown_as_it_is_written(size: int) -> None:
    """An error shows a size as the setting spells it, and never another size."""
    assert converters.size(size_text(size)) == size
    assert [size_text(each) for each in (1024, 25 * 2**20, 2**30, 1025)] == [
        '1K',
        '25M',
        '1G',
        '1025',
    ]


@pytest.mark.parametrize(
    'convert',
    [
        *('hostname', 'host', 'delivery', 'duration', 'size', 'rate'),
        *('absolute_path', 'durations'),
    ],
)
def test_regression_converters_take_no_time(convert: str) -> None:
    """Once a host name of forty characters and an underscore kept the application from starting."""
    for tail in ('_', '!', ' ', '-', '.', ':', '_.'):
        for text in ('a' * 250 + tail, 'a.' * 100 + tail, 'a-' * 100 + tail, '1' * 250 + tail):
            start = time.process_time()
            with suppress(ValueError):
                getattr(converters, convert)(text)
            assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    'wrong',
    ['', '90', 's', '5 x', '-5m', '+5m', '5m 5m', '1e3s', '٣d', '5M', '0x5s', '1_0s', '3651d'],
)
def test_wrong_durations(wrong: str) -> None:
    """A duration is a number and a unit."""
    with pytest.raises(ValueError, match='write'):
        converters.duration(wrong)


_LABEL = '[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?'


def takes(convert: Callable[[str], Any], text: str) -> bool:
    try:
        convert(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ('convert', 'pattern', 'letters'),
    [
        (converters.count, '0*[1-9][0-9]*(?<![0-9]{6})', '019.٣ '),
        (
            converters.size,
            '(?=[0-9]*[1-9])[0-9]{1,15} *[kmgKMG\u212a]?[bB]?',
            '019kKMmgGbBs. \u212a٣',
        ),
        (converters.duration, r'\s*[0-9]{1,4}(?:\.[0-9]{1,9})? *[smhd]\s*', '019.smhdSk٣ \n'),
        (converters.hostname, rf'{_LABEL}(?:\.{_LABEL})*\.?', 'aZ09.-_é٣ \n'),
    ],
)
@given(data=st.data())
def test_converters_take_what_their_pattern_says(
    convert: Callable[[str], Any], pattern: str, letters: str, data: st.DataObject
) -> None:
    """A converter accepts exactly the texts of its pattern."""
    text = data.draw(st.text(letters, max_size=5))
    assert takes(convert, text) == bool(re.fullmatch(pattern, text))


@pytest.mark.parametrize(
    ('convert', 'text', 'taken'),
    [
        (converters.size, '1' * 15, True),
        (converters.size, '1' * 16, False),
        (converters.size, '25 mb', True),
        (converters.size, '25m b', False),
        (converters.duration, '000000001.123456789s', True),
        (converters.duration, '0000000001s', False),
        (converters.duration, '1.1234567890s', False),
        (converters.hostname, 'a' * 63, True),
        (converters.hostname, 'a' * 64, False),
        (converters.hostname, '.'.join(['a' * 63] * 3 + ['a' * 61]), True),
        (converters.hostname, '.'.join(['a' * 63] * 3 + ['a' * 62]), False),
    ],
)
def test_how_long_a_value_may_be(convert: Callable[[str], Any], text: str, taken: bool) -> None:
    """Digits, labels and names have a greatest length."""
    assert takes(convert, text) is taken


@pytest.mark.parametrize(('affinity', 'cores'), [(True, 2), (False, 8)])
def test_processes_for_each_core(
    affinity: bool, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``auto`` is the number of cores that the process may use, if the system says it."""
    monkeypatch.setattr(converters, '_AFFINITY', affinity)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {0, 5})
    monkeypatch.setattr(os, 'cpu_count', lambda: 8)
    assert converters.processes('Auto') == cores


@pytest.mark.parametrize(
    ('text', 'taken'), [('1', True), ('999', True), ('0', False), ('1000', False), ('all', False)]
)
def test_processes(text: str, taken: bool) -> None:
    """More than 999 processes are a mistake."""
    assert takes(converters.processes, text) == taken


@pytest.mark.parametrize(
    ('value', 'found'),
    [
        ('fe80::1%eth0', '[fe80::1%25eth0]'),
        ('[fe80::1%25]', '[fe80::1%2525]'),
        ('mail.straße.example', 'mail.straße.example'),
        ('क्\u200dष.in', 'क्\u200dष.in'),
    ],
)
def test_relay_host(value: str, found: str) -> None:
    """A host is returned as a URL has it: a zone behind %25 (RFC 6874), a name in any script."""
    assert converters.host(value) == found


def test_our_own_address_has_no_zone() -> None:
    """An address literal of EHLO has no zone (RFC 5321, 4.1.3)."""
    with pytest.raises(ValueError, match=r'write \[192'):
        converters.hostname('[IPv6:fe80::1%eth0]')
