"""The mails that the demo sends."""

from __future__ import annotations

import secrets

from pyramid.renderers import render
from pyramid.request import Request

from pyramid_sendmail import Attachment, Message

from .relay import LATER, REFUSED

__all__ = ['reminder', 'to_later', 'to_unknown', 'welcome']

TERMS = """\
The terms of the demo
=====================

1. Nothing you send here leaves this machine.
2. The relay on loopback keeps the last 200 mails, as files.
3. Delete demo/var to start again.
"""


def welcome(request: Request, name: str, email: str) -> Message:
    """Return a mail with text, html, a picture inside the html, and an attachment.

    A pair is one recipient: whatever stands in the name, it cannot add another.
    """
    values = {'name': name, 'email': email}
    return Message(
        subject=f'Welcome, {name}',
        to=[(name, email)],
        text=render('demo:templates/welcome.txt.jinja2', values, request),
        html=render('demo:templates/welcome.html.jinja2', values, request),
        attachments=[
            Attachment('logo.png', path='demo:static/logo.png', content_id='logo'),
            Attachment('terms.txt', TERMS.encode(), content_type='text/plain; charset=utf-8'),
        ],
        tag='welcome',
    )


def to_unknown() -> Message:
    """Return a mail that the relay refuses for good: its reply to this address is 550."""
    return Message(
        subject='A letter to an unknown address',
        to=[f'unknown@{REFUSED}'],
        text='The relay does not know this address: an error event says so.',
        tag='refused',
    )


def to_later() -> Message:
    """Return a mail that the relay accepts at the second try: it defers a new address by 451."""
    return Message(
        subject='Patience',
        to=[f'ann-{secrets.token_hex(3)}@{LATER}'],
        text='The relay replied 451 at first: not now. The mail waited in the queue; here it is.',
        tag='deferred',
    )


def reminder(number: int) -> Message:
    """Return one of many mails."""
    return Message(
        subject=f'Reminder {number}',
        to=f'reader-{number}@example.org',
        text=f'This is mail {number} of one transaction. All of them leave, or none.',
        tag='reminder',
    )
