"""Encoded words (RFC 2047): any reader gets the text back."""

from __future__ import annotations

from email.header import decode_header, make_header

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid_sendmail.message.encoded_words import decode_words, encoded_words

TEXT = st.text(
    st.one_of(
        st.characters(exclude_categories=('Cs', 'Cc', 'Zl', 'Zp')),
        st.sampled_from('  "\\=?_,;:<>@()é👩\u200d🔬e\u0301ßж'),
    ),
    max_size=200,
)


@given(TEXT)
def test_legacy_reader(text: str) -> None:
    """The standard library's older decoder reads the same words."""
    words = encoded_words(text)

    assert str(make_header(decode_header('\r\n '.join(words)))) == text


@pytest.mark.parametrize(
    ('text', 'read'),
    [
        ('plain', 'plain'),
        ('=?utf-8?q?a_b?=', 'a b'),
        ('x =?UTF-8?B?w6k=?= y', 'x é y'),
        ('x =?UTF-8?B?w6k?= y', 'x é y'),
        ('=?utf-8?q?=C3?= =?utf-8?q?=A9?=', 'é'),
        ('=?utf-8?q?a?= =?iso-8859-1?q?=E9?=', 'aé'),
        ('=?utf-8*de?q?a?=', 'a'),
        ('=?nonsense?q?a?=', '=?nonsense?q?a?='),
        ('=?utf-8?b?a?=', '=?utf-8?b?a?='),
        ('=?utf-8?b?!!?= x', '=?utf-8?b?!!?= x'),
        ('what =? is', 'what =? is'),
    ],
)
def test_decode_words(text: str, read: str) -> None:
    """Encoded words are decoded; invalid ones stay as they are."""
    assert decode_words(text) == read
