"""TLS and passwords with real relays."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest

from pyramid_sendmail.exceptions import MailerUnavailable
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.mailers.smtp.options import Timeouts
from tests.peers.mail import fronted, make_mail, statuses
from tests.peers.relay import ANN, PASSWORD, Relay
from tests.peers.relays import REFUSING
from tests.peers.roots import HOST, TIMEOUT
from tests.support.sessions import make_mailer

pytestmark = pytest.mark.parametrize('relay', REFUSING, indirect=True)

KINDS = {'starttls': 'plain', 'implicit': 'implicit'}
"""How TLS begins, and the port for it."""


def mailer(relay: Relay, tls: Any, port: str = '', **options: Any) -> SMTPMailer:
    return make_mailer(
        HOST,
        getattr(relay.ports, port or KINDS[tls]),
        hostname='web.example.org',
        tls=tls,
        timeouts=Timeouts().capped(TIMEOUT),
        **options,
    )


def arrives(relay: Relay, mailer: SMTPMailer, sender: str) -> None:
    """Send a mail, and find it in the relay's queue."""
    mail = make_mail(sender)
    with closing(mailer.connect()) as session:
        (outcome,) = session.send([mail])
    assert statuses(outcome) == {'ann@example.org': 'delivered'}
    (held,) = relay.mails(sender)
    assert fronted(relay.content(held), mail.raw)


@pytest.mark.parametrize('tls', KINDS)
def test_private_authority(relay: Relay, ca_file: str, sender: str, tls: str) -> None:
    """A certificate of the authority that ``ca_file`` names is good, and the mail arrives."""
    relay.offer('TLS')
    arrives(relay, mailer(relay, tls, ca_file=ca_file), sender)


@pytest.mark.parametrize('tls', KINDS)
def test_other_authority(relay: Relay, wrong_ca_file: str, tls: str) -> None:
    """Of any other authority it is not, and the system's are no help."""
    relay.offer('TLS')
    for ca in (wrong_ca_file, None):
        with pytest.raises(MailerUnavailable, match='certificate') as caught:
            mailer(relay, tls, ca_file=ca).connect()
        assert 'ca_file' in str(caught.value)


@pytest.mark.parametrize('tls', KINDS)
def test_broken_tls(relay: Relay, ca_file: str, tls: str) -> None:
    """A relay that offers TLS and fails at it is unavailable: nothing is sent in plain text."""
    if 'TLS' not in relay.lacks:
        pytest.skip(f'TLS works in {relay.name}')
    with pytest.raises(MailerUnavailable) as caught:
        mailer(relay, tls, ca_file=ca_file).connect()
    assert 'TLS' in str(caught.value)


@pytest.mark.parametrize('tls', KINDS)
def test_password(relay: Relay, ca_file: str, sender: str, tls: str) -> None:
    """A user name and its password are accepted."""
    relay.offer('AUTH')
    credentials = {'username': ANN, 'password': PASSWORD}
    arrives(relay, mailer(relay, tls, ca_file=ca_file, **credentials), sender)


def test_login_alone(relay: Relay, ca_file: str, sender: str) -> None:
    """So they do where the relay knows nothing but LOGIN."""
    relay.offer('AUTH')
    relay.offer('AUTH LOGIN alone')
    credentials = {'username': ANN, 'password': PASSWORD}
    arrives(relay, mailer(relay, 'starttls', 'login', ca_file=ca_file, **credentials), sender)


@pytest.mark.parametrize('port', ['plain', 'login'])
def test_wrong_password(relay: Relay, ca_file: str, sender: str, port: str) -> None:
    """After a wrong password the relay is unavailable, by one attempt; no error contains it."""
    relay.offer('AUTH')
    relay.offer('AUTH' if port == 'plain' else 'AUTH LOGIN alone')
    before = relay.log.count(relay.failed_login)
    wrong = mailer(relay, 'starttls', port, ca_file=ca_file, username=ANN, password='wrong-one')
    with pytest.raises(MailerUnavailable) as caught:
        wrong.connect()
    assert '535' in str(caught.value)
    assert 'mail.password' in str(caught.value)
    assert 'wrong-one' not in str(caught.value)
    # What a later connection leaves in the log stands below all that this one has left.
    right = mailer(relay, 'starttls', port, ca_file=ca_file, username=ANN, password=PASSWORD)
    arrives(relay, right, sender)
    relay.root.until(lambda: sender in relay.log)
    assert relay.log.count(relay.failed_login) == before + 1
