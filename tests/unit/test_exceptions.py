"""The errors: task queues and pools of processes send them on, as they do messages."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest

from pyramid_sendmail.envelope import Reply, Report
from pyramid_sendmail.exceptions import (
    DamagedMail,
    MailAmbiguous,
    MailerUnavailable,
    MailRefused,
    MessageError,
    NoActiveTransaction,
    QueueError,
    SendmailError,
)

REPORT = Report('<1@x>', ('ann@x',), {'bob@x': Reply(550, '5.1.1 no such user')}, Reply(250, 'ok'))

ERRORS = [
    MessageError('to: wrong'),
    NoActiveTransaction('none'),
    QueueError(28, 'queue /q cannot be used', '/q'),
    DamagedMail('name', 'no header', b'x'),
    MailerUnavailable('closed', stale=True),
    MailRefused('refused', REPORT),
    MailAmbiguous('ambiguous', REPORT),
]


@pytest.mark.parametrize('copied', [lambda e: pickle.loads(pickle.dumps(e)), copy.copy])
@pytest.mark.parametrize('error', ERRORS, ids=lambda error: type(error).__name__)
def test_errors_can_be_pickled(
    error: SendmailError, copied: Callable[[SendmailError], SendmailError]
) -> None:
    """An error of a process pool's task that cannot be unpickled would never arrive."""
    again = copied(error)

    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
