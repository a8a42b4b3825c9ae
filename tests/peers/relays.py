"""The relays, by name, and which of them the tests of a file are for."""

from __future__ import annotations

from tests.peers.exim import Exim
from tests.peers.haraka import Haraka
from tests.peers.maildev import MailDev
from tests.peers.opensmtpd import OpenSMTPD
from tests.peers.postfix import Postfix
from tests.peers.relay import Relay
from tests.peers.smtp_server import SMTPServer

__all__ = ['REFUSING', 'RELAYS', 'SENDMAIL']

RELAYS: dict[str, type[Relay]] = {
    kind.name: kind for kind in (Postfix, Exim, OpenSMTPD, Haraka, SMTPServer, MailDev)
}

SENDMAIL = [kind.name for kind in (Postfix, Exim, OpenSMTPD)]
"""Those with a sendmail program."""

REFUSING = [name for name in RELAYS if name != MailDev.name]
"""Those that refuse recipients and passwords: MailDev takes what it is given."""
