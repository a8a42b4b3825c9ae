"""A message made into bytes, and nothing else: ``build ours|email KIND STEPS``.

``email`` is the standard library's EmailMessage with policy.SMTP. Ours is read back by two parsers
first, the standard library's and mail-parser's, and has to mean the same as that one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from email import message_from_bytes, policy
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Any

from tests.benchmarks.contenders.stopwatch import measure
from tests.benchmarks.work import Mail, email_message, mail_of


def by_email(mail: Mail) -> bytes:
    """As the library's documentation has it, with the headers that a mail needs."""
    message = email_message(mail, policy.SMTP)
    message['Date'] = formatdate(localtime=True)
    message['Message-ID'] = make_msgid(domain='web.example.org')
    return message.as_bytes()


def by_ours() -> Callable[[Mail], bytes]:
    """What ``send`` does with a message before it joins the transaction."""
    from pyramid_sendmail.message import EnvelopeFactory
    from tests.benchmarks.contenders.request import message

    composer = EnvelopeFactory(hostname='web.example.org')
    return lambda mail: composer.envelope(message(mail)).raw


def same(one: bytes, other: bytes) -> None:
    """Raise AssertionError where two messages do not mean the same."""
    import mailparser

    parsed = [message_from_bytes(raw, policy=policy.default) for raw in (one, other)]
    assert _meaning(parsed[0]) == _meaning(parsed[1])
    mails = [mailparser.parse_from_bytes(raw) for raw in (one, other)]
    first, second = map(_meaning_of_other, mails)
    assert first == second, (first, second)


def _meaning(message: EmailMessage) -> object:
    parts = [
        (part.get_content_type(), part.get_filename(), part.get_content())
        for part in message.walk()
        if not part.is_multipart()
    ]
    return [str(message[name]) for name in ('From', 'To', 'Subject')], parts


def _meaning_of_other(mail: Any) -> object:
    texts = [_lines(text) for text in (*mail.text_plain, *mail.text_html)]
    files = [(each['filename'], each['payload'].split()) for each in mail.attachments]
    return mail.from_, mail.to, mail.subject, texts, files


def _lines(text: str) -> list[str]:
    return text.strip().splitlines()


def main(who: str, kind: str, steps: str) -> None:
    """Measure."""
    mail = mail_of(kind)
    build = by_email if who == 'email' else by_ours()
    if who == 'ours':
        same(build(mail), by_email(mail))
    measure(lambda: lambda: build(mail), steps=int(steps))


if __name__ == '__main__':
    main(*sys.argv[1:])
