"""Regular expressions that are compiled when they are first used."""

from __future__ import annotations

import re

import pytest

from pyramid_sendmail.patterns import pattern


def test_it_is_as_good_as_a_compiled_pattern() -> None:
    """Whatever is asked of it, with its flags, and of bytes too."""
    word = pattern('[a-z]+', re.IGNORECASE)
    compiled = re.compile('[a-z]+', re.IGNORECASE)
    for _ in range(2):
        assert word.findall('One, two') == compiled.findall('One, two') == ['One', 'two']
        assert word.sub('x', 'One, two') == 'x, x'
        assert word.fullmatch('1') is None
    assert word.pattern == compiled.pattern
    assert pattern(rb'\r(?!\n)').search(b'a\rb')


def test_it_is_compiled_when_it_is_used() -> None:
    """And not before, so that a mistake is found by a test of what uses it."""
    wrong = pattern('(')
    with pytest.raises(re.error):
        wrong.match('')
