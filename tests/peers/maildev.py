"""MailDev, in which developers look at the mail of their applications."""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import urlencode
from urllib.request import urlopen

from tests.peers.nodejs import NodeRelay
from tests.peers.relay import SIZE, Certificate, Held
from tests.peers.roots import HOST, TIMEOUT, Folder, free_ports

__all__ = ['MailDev']


class MailDev(NodeRelay):
    """One process, with its HTTP interface. It offers no STARTTLS, and AUTH where everybody has to
    log in: it is started without."""

    name = 'maildev'

    def __init__(self, certificate: Certificate) -> None:
        (self.web,) = free_ports(1)
        super().__init__(certificate)
        self.lacks |= {
            'refusals': 'it takes mail for everybody',
            'limit of connections': 'it has none',
            'memory': 'it reads its mail again after a start, and takes envelopes from headers',
        }

    def furnish(self, root: Folder) -> Sequence[Sequence[str]]:
        command = ['node_modules/.bin/maildev', '--ip', HOST, '--smtp', str(self.ports.plain)]
        command += ['--web-ip', HOST, '--web', str(self.web), '--verbose']
        command += ['--mail-directory', str(self.mail), '--max-message-size', str(SIZE)]
        return [command]

    def start(self) -> None:
        super().start()
        self.root.until(self._answers)

    def _answers(self) -> bool:
        try:
            return self._get('healthz') == b'true'
        except OSError:
            return False

    def _get(self, path: str) -> bytes:
        with urlopen(f'http://{HOST}:{self.web}/api/{path}', timeout=TIMEOUT) as answer:
            return bytes(answer.read())

    def _list(self, **wanted: str) -> list[Held]:
        return [
            Held(
                each['id'],
                each['envelope']['from']['address'],
                frozenset(to['address'] for to in each['envelope']['to']),
            )
            for each in json.loads(self._get(f'email?{urlencode(wanted)}'))
        ]

    @property
    def log(self) -> str:
        """What it prints, which names no senders, and the senders of what it has."""
        return '\n'.join((super().log, *(mail.sender for mail in self.held())))

    def held(self) -> list[Held]:
        return self._list()

    def mails(self, sender: str) -> list[Held]:
        return self._list(**{'envelope.from.address': sender})

    def content(self, mail: Held) -> bytes:
        return self._get(f'email/{mail.id}/source')
