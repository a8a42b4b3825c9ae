"""What an application is warned of when it starts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.queue import MemoryQueue
from tests.support.configuration import committed, configured
from tests.support.doubles import RecordingMailer

NOWHERE = 'neither mail.url nor mail.host is set: mail goes to smtp://localhost:25'
LOST = 'mail.queue_path is not set: mail that smtp://{}:25 does not take at once is lost'


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ('MAIL_URL', 'MAIL_PASSWORD', 'PYTEST_VERSION'):
        monkeypatch.delenv(name, raising=False)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ('given', 'environ', 'expected'),
    [
        ({}, {}, [NOWHERE, LOST.format('localhost')]),
        ({'url': ' '}, {}, [NOWHERE, LOST.format('localhost')]),
        ({'queue_path': '{here}/mail'}, {}, [NOWHERE]),
        ({'port': '25', 'queue_path': '{here}/mail'}, {}, [NOWHERE]),
        ({'url': 'smtp://relay', 'queue_path': '{here}/mail'}, {}, []),
        ({'host': 'relay', 'queue_path': '{here}/mail'}, {}, []),
        ({'queue_path': '{here}/mail'}, {'MAIL_URL': 'smtp://relay'}, []),
        ({'url': 'smtp://relay'}, {}, [LOST.format('relay')]),
        ({'url': 'smtp://relay', 'delivery': 'direct'}, {}, [LOST.format('relay')]),
        ({'url': 'null:'}, {}, []),
        ({'url': 'file://{here}/outbox'}, {}, []),
        ({'url': 'smtp://relay file://{here}/outbox'}, {}, []),
    ],
)
def test_settings(
    given: dict[str, str],
    environ: dict[str, str],
    expected: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Settings that do not say where mail goes, or that may lose mail, are logged once at start."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    committed(**{name: value.replace('{here}', str(tmp_path)) for name, value in given.items()})

    found = warnings(caplog)
    assert len(found) == len(expected)
    for text, begin in zip(found, expected, strict=True):
        assert text.startswith(begin)
        assert 'Write mail.' in text


@pytest.mark.parametrize(
    ('parts', 'expected'),
    [
        ({'set_mailer': RecordingMailer()}, []),
        ({'set_mail_queue': MemoryQueue()}, [NOWHERE]),
        ({'set_mailer': SMTPMailer('relay', hostname='web')}, [LOST.format('relay')]),
    ],
)
def test_parts_of_the_application(
    parts: dict[str, Any], expected: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """So it is with parts that the application sets, of which those for tests lose nothing."""
    config = configured()
    for directive, part in parts.items():
        getattr(config, directive)(part)
    config.commit()

    found = warnings(caplog)
    assert [text[: len(begin)] for text, begin in zip(found, expected, strict=True)] == expected


def test_tests_are_not_warned(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test that has no queue knows what it does."""
    monkeypatch.setenv('PYTEST_VERSION', '9')
    committed(url='smtp://relay')

    assert warnings(caplog) == []


def test_no_password(caplog: pytest.LogCaptureFixture) -> None:
    """No warning shows a secret."""
    committed(url='smtp://ann:s3kr1t@relay')

    assert len(warnings(caplog)) == 1
    assert 's3kr1t' not in caplog.text


def test_no_sender(caplog: pytest.LogCaptureFixture) -> None:
    """That no sender is set is a line of information: many applications give one."""
    caplog.set_level(logging.INFO)
    committed(url='null:')
    assert 'mail.default_sender is not set' in caplog.text
    assert warnings(caplog) == []
    caplog.clear()
    committed(url='null:', default_sender='shop@example.org')
    assert caplog.text == ''
