"""Mail of other programs at the relay: of an old queue, and messages that are sent on."""

from __future__ import annotations

import email
import email.policy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.envelope import Tally
from tests.support.smtp.server import ScriptedSMTPServer
from tests.support.world import World

Start = Callable[..., ScriptedSMTPServer]
MakeWorld = Callable[..., World]

OLD = {
    'zope': (
        'X-Zope-From: shop@straße.example\nX-Zope-To: ann@bücher.example\n',
        '',
    ),
    'repoze': (
        '',
        'X-Actually-From: shop@straße.example\nX-Actually-To: ann@bücher.example\n',
    ),
}

HEAD = (
    'From: Jürgen <shop@straße.example>\nTo: Ann <ann@bücher.example>\n'
    'Cc: ü@x.example\nSubject: Grüße\n'
)


@pytest.mark.parametrize('kind', OLD)
@pytest.mark.parametrize('charset', ['utf-8', 'cp1252'])
def test_mail_of_an_old_queue(make_world: MakeWorld, kind: str, charset: str) -> None:
    """Raw headers and international domains leave to a relay that has no SMTPUTF8, in the form that
    each reader shows, with a date."""
    world = make_world()
    world.server.extensions = ('PIPELINING', '8BITMIME')
    before, after = OLD[kind]
    head = before.encode() + HEAD.encode(charset) + after.encode()
    Path(world.queue.path, 'new', '1700000000.1.web.1').write_bytes(head + b'\nHello.\n')

    assert world.run() == Tally(delivered=1)

    [message] = world.server.messages
    assert (message.sender, message.recipients) == (
        'shop@xn--strae-oqa.example',
        ('ann@xn--bcher-kva.example',),
    )
    assert message.data.isascii()
    found: Any = email.message_from_bytes(message.data, policy=email.policy.default)
    assert found['Subject'] == 'Grüße'
    assert found['Date'].datetime is not None
    [sender] = found['From'].addresses
    assert (sender.display_name, sender.domain) == ('Jürgen', 'xn--strae-oqa.example')
    assert str(found['To']) == 'Ann <ann@xn--bcher-kva.example>'


SIGNED = (
    b'Content-Type: multipart/signed; boundary=q; protocol="application/pgp-signature"\n\n'
    b'--q\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n'
    b'Gr\xc3\xbc\xc3\x9fe\n--q\nContent-Type: application/pgp-signature\n\nx\n--q--\n'
)


@pytest.mark.parametrize('extensions', [('8BITMIME',), ('8BITMIME', 'CHUNKING', 'PIPELINING'), ()])
def test_signed_content_of_8_bits(make_world: MakeWorld, extensions: tuple[str, ...]) -> None:
    """It leaves byte for byte, declared as 8 bits; where the relay has no 8BITMIME the mail fails,
    and the event names the remedy."""
    world = make_world()
    world.server.extensions = extensions
    message = email.message_from_bytes(b'From: a@example.org\nTo: b@example.org\n' + SIGNED)
    world.send(message, sender='shop@example.org', recipients=['ann@example.org'])

    tally = world.run()

    if extensions:
        assert tally == Tally(delivered=1)
        [found] = world.server.messages
        assert 'BODY=8BITMIME' in found.mail_arguments
        body = SIGNED.replace(b'\n', b'\r\n').partition(b'\r\n\r\n')[2]
        assert found.data.endswith(body)
    else:
        assert tally == Tally(failed=1)
        [event] = world.events_of('error')
        assert 'use a relay that takes it, or sign content that is quoted-printable' in event.reason
        assert world.server.messages == []
