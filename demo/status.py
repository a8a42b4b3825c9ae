"""What the page shows: the files of the queue and of the relay, and the rows of subscribers."""

from __future__ import annotations

import json
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

from .models import LogEntry, SignUp

__all__ = ['Delivered', 'content_of', 'read_delivered', 'status']

SHOWN_ROWS = 20

# <priority>-<due in milliseconds>-<attempt>-<id>, and for a transaction's further mails, while
# they are in tmp/, a dot and the first one's name.
_NAME = re.compile(r'\d-(\d+)-(\d+)-[0-9a-f]+(?:\..+)?')


def status(request: Request) -> dict[str, Any]:
    """Return all that the page shows, newest first, as JSON. Times are epoch seconds."""
    settings = request.registry.settings
    queue = Path(settings['mail.queue_path'])
    session = request.dbsession
    log = session.scalars(select(LogEntry).order_by(LogEntry.id.desc()).limit(2 * SHOWN_ROWS))
    people = session.scalars(select(SignUp).order_by(SignUp.id.desc()).limit(SHOWN_ROWS))
    return {
        'queued': [mail for name in ('tmp', 'new', 'cur', 'done') for mail in _in(queue, name)],
        'failed': list(_in(queue, 'failed'))[::-1][:SHOWN_ROWS],
        'delivered': [
            mail.facts(request) for mail in _newest(Path(settings['demo.delivered']), SHOWN_ROWS)
        ],
        'log': [_row(entry) for entry in log],
        'signups': {
            'count': session.scalar(select(func.count(SignUp.id))),
            'newest': [{'at': one.at, 'name': one.name, 'email': one.email} for one in people],
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


def _in(queue: Path, folder: str) -> Iterator[dict[str, Any]]:
    """Yield the mails of one folder in the order of delivery: a file's name is its schedule."""
    try:
        names = sorted(path.name for path in (queue / folder).iterdir())
    except FileNotFoundError:
        return
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None:
            continue
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
            return f'<!doctype html><pre style="white-space:pre-wrap">{text}</pre>'
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


def _newest(folder: Path, count: int) -> Iterator[Delivered]:
    for path in sorted(folder.glob('[0-9]*'), reverse=True)[:count]:
        mail = read_delivered(folder, path.name)
        if mail is not None:
            yield mail
