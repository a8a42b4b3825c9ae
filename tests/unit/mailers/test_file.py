"""Mail into a folder of files."""

from __future__ import annotations

import errno
import mailbox
import os
import stat
from email import policy
from email.parser import BytesParser
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.envelope import Envelope
from pyramid_sendmail.exceptions import MailerUnavailable
from pyramid_sendmail.mailers.file import FileMailer

RAW = b'Subject: hello\r\nTo: a@example.org\r\n\r\n.hello\r\n'


def envelope(**changes: Any) -> Envelope:
    values: dict[str, Any] = {
        'id': '0' * 32,
        'message_id': '<0@example.org>',
        'sender': 'from@example.org',
        'recipients': ('a@example.org', 'bcc@example.org'),
        'raw': RAW,
        'queued_at': 0.0,
    }
    return Envelope(**(values | changes))


def send(path: Path, **changes: Any) -> Any:
    session = FileMailer(path).connect()
    [outcome] = session.send([envelope(**changes)])
    session.close()
    return outcome


def test_file(tmp_path: Path) -> None:
    """A file has the lines of the envelope first, then the exact bytes."""
    outcome = send(tmp_path / 'a' / 'b')
    [path] = (tmp_path / 'a' / 'b' / 'new').iterdir()
    assert path.suffix == '.eml'
    assert path.read_bytes() == (
        b'Return-Path: <from@example.org>\r\n'
        b'X-Envelope-To: <a@example.org>\r\n'
        b'X-Envelope-To: <bcc@example.org>\r\n' + RAW
    )
    assert path.name in outcome['a@example.org'].reply.text
    assert list((tmp_path / 'a' / 'b' / 'tmp').iterdir()) == []


def test_mail_programs_read_it(tmp_path: Path) -> None:
    """The folder is a Maildir, and each file is a message."""
    send(tmp_path)
    [message] = mailbox.Maildir(tmp_path, create=False)
    assert message['Subject'] == 'hello'
    [path] = (tmp_path / 'new').iterdir()
    parsed = BytesParser(policy=policy.default).parsebytes(path.read_bytes())
    assert parsed['Return-Path'] == '<from@example.org>'
    assert parsed.get_content().splitlines() == ['.hello']
    assert not parsed.defects


@pytest.mark.parametrize('umask', [0o000, 0o022, 0o077])
def test_only_the_owner_may_read(tmp_path: Path, umask: int) -> None:
    """Files are 0600 and folders 0700, and others may not write to those above, whatever the
    umask and the spelling of the path."""
    before = os.umask(umask)
    try:
        send(tmp_path / 'deep' / 'mail')
        FileMailer(f'{tmp_path}/deep/other//').connect()
        FileMailer(f'{tmp_path}/new/deep/mail/').connect()
    finally:
        os.umask(before)
    [path] = (tmp_path / 'deep' / 'mail' / 'new').iterdir()
    mails = [path.parent.parent, tmp_path / 'deep' / 'other', tmp_path / 'new' / 'deep' / 'mail']
    for folder in [each for mail in mails for each in (mail, *mail.iterdir())]:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for above in {each.parent for each in mails} | {tmp_path / 'new'}:
        assert stat.S_IMODE(above.stat().st_mode) == 0o755 & ~umask
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_each_mail_is_a_file_of_its_own(tmp_path: Path) -> None:
    """The same mail sent twice gives two files."""
    send(tmp_path)
    send(tmp_path)
    assert len(list((tmp_path / 'new').iterdir())) == 2


def test_addresses_cannot_add_headers(tmp_path: Path) -> None:
    """An address with a line break is refused; the others get their mail."""
    outcome = send(
        tmp_path, sender='x\r\nBcc: y', recipients=('a@b\r\nSubject: x', 'jürgen@example.org')
    )
    assert [verdict.status for verdict in outcome.values()] == ['failed', 'delivered']
    [path] = (tmp_path / 'new').iterdir()
    assert path.read_bytes() == (
        'Return-Path: <>\r\nX-Envelope-To: <jürgen@example.org>\r\n'.encode() + RAW
    )
    assert [each.status for each in send(tmp_path, recipients=('',)).values()] == ['failed']


@pytest.mark.parametrize('call', ['open', 'fsync', 'rename'])
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A full disk raises MailerUnavailable and leaves nothing behind; the next mail is filed."""
    session = FileMailer(tmp_path).connect()

    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(MailerUnavailable, match='No space left on device; mail') as caught:
            list(session.send([envelope()]))
    assert not caught.value.stale
    session.close()
    assert [path for path in tmp_path.rglob('*') if path.is_file()] == []
    send(tmp_path)


def test_unsynced_folder_is_ambiguous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the folder of a new file cannot be synced, the file may be lost: the mail is ambiguous."""
    session = FileMailer(tmp_path).connect()
    sync = os.fsync

    def fail(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    monkeypatch.setattr(os, 'fsync', fail)
    [outcome] = session.send([envelope(recipients=('a@example.org',))])
    assert outcome['a@example.org'].status == 'ambiguous'
    assert 'Input/output error' in outcome['a@example.org'].reason


def test_relative_path() -> None:
    """A relative path is refused: it means another folder in another process."""
    with pytest.raises(ValueError, match='not absolute'):
        FileMailer('mail')
