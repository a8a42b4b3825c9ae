"""What the page shows: the files of the queue and of the relay, and the rows of subscribers."""

from __future__ import annotations

import json
import os
import re
from base64 import b64encode
from collections.abc import Iterator
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

from pyramid.request import Request
from sqlalchemy import func, select

from pyramid_sendmail.interfaces import IMailQueue

from .models import LogEntry, SignUp
from .parts import Parts

__all__ = ['Delivered', 'content_of', 'read_delivered', 'status']

SHOWN_ROWS = 15

TEXT_STYLE = 'margin:0;font:14px/1.5 monospace;white-space:pre-wrap;overflow-wrap:anywhere'

# <priority>-<due in milliseconds>-<attempt>-<id>, and for a transaction's further mails, while
# they are in tmp/, a dot and the first one's name.
_NAME = re.compile(r'\d-(\d+)-(\d+)-([0-9a-f]+)(?:\..+)?')


def status(request: Request) -> dict[str, Any]:
    """Return all that the page shows, newest first, as JSON. Times are epoch seconds."""
    settings = request.registry.settings
    queue, folder = Path(settings['mail.queue_path']), Path(settings['demo.folder'])
    session = request.dbsession
    log = session.scalars(select(LogEntry).order_by(LogEntry.id.desc()).limit(SHOWN_ROWS))
    people = session.scalars(select(SignUp).order_by(SignUp.id.desc()).limit(SHOWN_ROWS))
    events = session.execute(
        select(LogEntry.kind, func.count().label('mails')).group_by(LogEntry.kind)
    )
    queued = [(name, file) for name in ('tmp', 'new', 'cur', 'done') for file in _in(queue, name)]
    failed = [('failed', file) for file in _in(queue, 'failed')][::-1]
    delivered = sorted((folder / 'delivered').glob('[0-9]*'), reverse=True)
    return {
        'parts': {name: part._asdict() for name, part in Parts(folder).read().items()},
        'queued': list(_mails(queue, queued)),
        'failed': [_with_reason(request, mail) for mail in _mails(queue, failed)],
        'delivered': [mail.facts(request) for mail in _newest(delivered)],
        'log': [_row(entry) for entry in log],
        'signups': {
            'count': session.scalar(select(func.count(SignUp.id))),
            'newest': [{'at': one.at, 'name': one.name, 'email': one.email} for one in people],
        },
        'counts': {
            'queued': len(queued),
            'failed': len(failed),
            'delivered': len(delivered),
            'events': {row.kind: row.mails for row in events},
        },
    }


def _row(entry: LogEntry) -> dict[str, Any]:
    return {
        'id': entry.id,
        'at': entry.at,
        'kind': entry.kind,
        'message_id': entry.message_id,
        'queued_at': entry.queued_at,
        'recipients': entry.recipients.split(', '),
        'subject': entry.subject,
        'tag': entry.tag,
        'attempt': entry.attempt,
        'reply': entry.reply,
        'reason': entry.reason,
        'retry_at': entry.retry_at,
    }


def _in(queue: Path, folder: str) -> list[str]:
    """Return the files of one folder in the order of delivery: a file's name is its schedule."""
    try:
        return sorted(filter(_NAME.fullmatch, os.listdir(queue / folder)))
    except FileNotFoundError:
        return []


def _mails(queue: Path, files: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Yield the first mails of the queue, each given by its folder and name."""
    for folder, name in files[:SHOWN_ROWS]:
        match = _NAME.fullmatch(name)
        assert match is not None
        try:
            with (queue / folder / name).open('rb') as file:
                head = file.read(65536)
        except FileNotFoundError:
            continue  # The queue processor was faster.
        # A file of the queue is a plain .eml; the queue's own headers come first.
        mail = BytesParser(policy=default).parsebytes(head, headersonly=True)
        yield {
            'folder': folder,
            'name': name,
            'id': match[3],
            'due': int(match[1]) / 1000,
            'attempt': int(match[2]),
            'message_id': str(mail.get('Message-ID', '')),
            'sender': str(mail.get('X-Envelope-From', '')),
            # The state of the recipient and a blank stand before the address.
            'recipients': [
                str(line).partition(' ')[2] for line in mail.get_all('X-Envelope-To', [])
            ],
            'subject': str(mail.get('Subject', '')),
        }


def _with_reason(request: Request, mail: dict[str, Any]) -> dict[str, Any]:
    """Return a dead letter, and why it is one."""
    details = request.registry.getUtility(IMailQueue).get(mail['id'])
    return mail | {'reason': '' if details is None else details.reason}


def content_of(part: EmailMessage) -> bytes:
    """Return the content of an attachment, decoded."""
    content = part.get_payload(decode=True)
    return content if isinstance(content, bytes) else b''


class Delivered:
    """A mail as the relay received it."""

    def __init__(self, id: str, data: bytes) -> None:
        first, _, self.raw = data.partition(b'\n')
        self.id = id
        self._envelope = json.loads(first)
        mail = BytesParser(policy=default).parsebytes(self.raw)
        assert isinstance(mail, EmailMessage)
        self.mail = mail

    @property
    def parts(self) -> list[EmailMessage]:
        """The parts with a file name, pictures inside the html among them."""
        return [part for part in self.mail.walk() if part.get_filename()]

    def body(self, kind: str) -> str | None:
        """Return the text ('plain') or the html, as it was sent."""
        part = self.mail.get_body(preferencelist=(kind,))
        return None if part is None else part.get_content()

    def page(self) -> str:
        """Return the html for a frame. ``cid:`` becomes ``data:``: nothing is loaded."""
        html = self.body('html')
        if html is None:
            text = escape(self.body('plain') or '')
            return f'<!doctype html><pre style="{TEXT_STYLE}">{text}</pre>'
        for part in self.parts:
            content_id = str(part.get('Content-ID', '')).strip().strip('<>')
            if content_id:
                data = b64encode(content_of(part)).decode()
                uri = f'data:{part.get_content_type()};base64,{data}'
                html = html.replace(f'cid:{content_id}', uri)
        return html

    def facts(self, request: Request) -> dict[str, Any]:
        """Return what status.json has about it."""
        return {
            'id': self.id,
            'message_id': str(self.mail.get('Message-ID', '')),
            'sender': self._envelope['sender'],
            'recipients': self._envelope['recipients'],
            'received_at': self._envelope['received_at'],
            'from': str(self.mail.get('From', '')),
            'to': str(self.mail.get('To', '')),
            'subject': str(self.mail.get('Subject', '')),
            'text': self.body('plain'),
            'html': self.body('html'),
            'page': request.route_path('delivered', id=self.id),
            'source': request.route_path('source', id=self.id),
            'attachments': [
                {
                    'filename': part.get_filename(),
                    'content_type': part.get_content_type(),
                    'size': len(content_of(part)),
                    'inline': 'Content-ID' in part,
                    'href': request.route_path('part', id=self.id, number=number),
                }
                for number, part in enumerate(self.parts)
            ],
        }


def read_delivered(folder: Path, id: str) -> Delivered | None:
    """Return one mail of the relay; None if the relay does not have it, or not any more."""
    if re.fullmatch(r'[0-9-]+', id) is None:
        return None
    try:
        return _read(folder / id)
    except FileNotFoundError:
        return None


@lru_cache(maxsize=2 * SHOWN_ROWS)
def _read(path: Path) -> Delivered:
    """Return a mail. It is cached: the page loads twice a second, and stored mail never changes."""
    return Delivered(path.name, path.read_bytes())


def _newest(paths: list[Path]) -> Iterator[Delivered]:
    for path in paths[:SHOWN_ROWS]:
        mail = read_delivered(path.parent, path.name)
        if mail is not None:
            yield mail
