"""The options and credentials of one URL."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from pyramid_sendmail.mailers.factory import mailer_from_url
from pyramid_sendmail.mailers.smtp.authentication import Bearer
from pyramid_sendmail.mailers.smtp.options import SessionOptions

SECRET = 's3kr1t'


def make(url: str, **options: Any) -> Any:
    return mailer_from_url(url, hostname='web.example.org', **options)


def test_timeout_caps_every_phase() -> None:
    """?timeout= is the longest time-out of every phase."""
    seen = [given(f'smtp://relay?timeout={each}')['timeouts'] for each in ('20s', '1h')]
    assert (seen[0].connect, seen[0].final, seen[0].quit) == (20, 20, 5)
    assert (seen[1].connect, seen[1].final) == (30, 600)


def given(url: str, **options: Any) -> dict[str, Any]:
    """Return the arguments with which SMTPMailer is made."""
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            'pyramid_sendmail.mailers.smtp.mailer.SMTPMailer.__init__',
            lambda _self, *_place, **options: seen.append(options),
        )
        make(url, **options)
    made: dict[str, Any] = seen[0]
    return made


@pytest.mark.parametrize(
    ('query', 'options'),
    [
        ('', SessionOptions()),
        ('pipelining=on', SessionOptions()),
        ('pipelining=off', SessionOptions(pipelining=False)),
        ('pipelining=False', SessionOptions(pipelining=False)),
        ('max_recipients=1', SessionOptions(max_recipients=1)),
        ('window=8', SessionOptions(window=8)),
        ('notify=never', SessionOptions(notify=('never',))),
        (
            'notify=Failure,delay&ret=headers',
            SessionOptions(notify=('failure', 'delay'), ret='headers'),
        ),
        ('notify=success%2Cfailure', SessionOptions(notify=('success', 'failure'))),
    ],
)
def test_options_of_the_session(query: str, options: SessionOptions) -> None:
    """The options of the URL reach the mailer."""
    assert given(f'smtp://relay?{query}')['options'] == options


def test_token_of_a_function() -> None:
    """?token= names a function, with a user name in the URL or in its own setting."""
    for token in (
        'tests.unit.mailers.test_schemes.access_token',
        'tests.unit.mailers.test_schemes:access_token',
    ):
        options = given(f'smtps://ann@relay?token={token}')
        assert options['identity'] == Bearer('ann', access_token)
        assert given(f'smtps://relay?token={token}', username='bob')['identity'].username == 'bob'


def access_token() -> str:
    return SECRET


def test_token_of_a_file(tmp_path: Path) -> None:
    """The file of ?token_file= is read each time, so that another process can renew it."""
    path = tmp_path / 'my token'
    token = given(f'smtps://ann@relay?token_file={quote(str(path))}')['identity'].token
    for written in ('one', 'two'):
        path.write_text(written, encoding='utf-8')
        assert token() == written
