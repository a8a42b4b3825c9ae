"""The list of words that nothing in this project uses."""

from __future__ import annotations

from tests.support.words import found_in, found_in_python


def test_planted_words() -> None:
    """Each word of the list is found, with its line; others that look like it are not."""
    for word in ('whoever', 'Nobody', 'roads', 'is told', 'not to\n    be had', 'asker', 'crew'):
        assert [each.line for each in found_in(f'\nSay {word} here.')] == [2], word
    code = "def _road():\n    # The relay's\n    # nobody.\n    x = 'Say it.' 'Octets.'\n"
    found = found_in_python(code)
    assert [(each.line, each.word) for each in found] == [
        *((1, '_road'), (3, 'nobody'), (4, 'Octets'))
    ]
    assert str(found[1]).startswith('3: "nobody": write none')
    plain = 'It delegates, wholehearted: application/octet-stream. RFC 5321 counts octets.'
    assert list(found_in(plain)) == []
    account = (
        'As \'nobody\', for nobody@example.org and nobody.else@example.org, <nobody> and "nobody".'
    )
    assert list(found_in(account)) == []
    assert list(found_in("It is nobody's.")) != []
    assert list(found_in('"""Nobody waits."""')) != []
    assert list(found_in('It counts octets.\n\nRFC 5321 does.')) != []
