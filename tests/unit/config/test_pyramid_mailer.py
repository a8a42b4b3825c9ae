"""pyramid_mailer beside this package: which of the two to drop."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyramid.config import Configurator

from tests.support.configuration import failure

SOURCE = """
from zope.interface import Interface

class IMailer(Interface):
    pass

def get_mailer(request):
    return 'that of pyramid_mailer'

def includeme(config):
    config.registry.registerUtility(object(), IMailer)
    config.add_request_method(get_mailer, 'mailer', reify=True)
"""


@pytest.fixture(autouse=True)
def _package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put a package on the path that does what the other one does when it is included."""
    folder = tmp_path / 'pyramid_mailer'
    folder.mkdir()
    (folder / '__init__.py').write_text(SOURCE)
    (folder / 'testing.py').write_text('from . import includeme as other\n' + SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [each for each in sys.modules if each.partition('.')[0] == 'pyramid_mailer']:
        del sys.modules[name]


def nested(config: Configurator) -> None:
    config.include('pyramid_sendmail')


@pytest.mark.parametrize(
    'includes',
    [
        ['pyramid_mailer', 'pyramid_sendmail'],
        ['pyramid_sendmail', 'pyramid_mailer'],
        ['pyramid_sendmail', 'pyramid_mailer.testing'],
        ['pyramid_mailer', nested],
    ],
)
def test_both_are_included(includes: list[Any]) -> None:
    """The error says which to drop, whatever the order."""
    config = Configurator(settings={'mail.url': 'null:'})
    for include in includes:
        config.include(include)
    text = failure(config)
    assert "drop config.include('pyramid_mailer')" in text
    assert 'both set request.mailer' in text


def test_an_earlier_commit() -> None:
    """So does it after a commit, where Pyramid would see no conflict."""
    config = Configurator(settings={'mail.url': 'null:'})
    config.include('pyramid_mailer')
    config.commit()
    config.include('pyramid_sendmail')
    assert 'both set request.mailer' in failure(config)


@pytest.mark.parametrize('prefix', ['', 'mail.', None])
def test_our_prefix(prefix: str | None) -> None:
    """A prefix that is ours changes nothing."""
    config = Configurator(settings={'mail.url': 'null:', 'pyramid_mailer.prefix': prefix})
    config.include('pyramid_sendmail')
    config.commit()


def test_another_prefix() -> None:
    """Settings of another prefix would be ignored: they are named."""
    config = Configurator(
        settings={
            'pyramid_mailer.prefix': 'email.',
            'email.port': '587',
            'email.host': 's3kr1t',
            'mail.workers': '0',
        }
    )
    config.include('pyramid_sendmail')
    text = failure(config)
    assert 'pyramid_mailer.prefix = email.: ' in text
    assert 'rename email.host, email.port to mail.*, and remove this setting' in text
    assert 'mail.workers = 0' in text
    assert 's3kr1t' not in text
