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
    """Two processes, one of them for TLS, each with its HTTP interface."""

    name = 'maildev'

    def __init__(self, certificate: Certificate) -> None:
        self.web_ports = free_ports(2)
        super().__init__(certificate)
        self.lacks |= {
            'starttls': 'it hides it, with certificate and without',
            'AUTH': 'it demands a password of everybody or offers no mechanism',
            'refusals': 'it takes mail for everybody',
            'limit of connections': 'it has none',
            'memory': 'it reads its mail again after a start, and takes envelopes from headers',
        }

    def furnish(self, root: Folder) -> Sequence[Sequence[str]]:
        commands = []
        tls = ('--incoming-secure', '--incoming-key', 'key.pem', '--incoming-cert', 'chain.pem')
        smtp = ((self.ports.plain, ()), (self.ports.implicit, tls))
        for (port, options), web in zip(smtp, self.web_ports, strict=True):
            command = ['node_modules/.bin/maildev', '--ip', HOST, '--smtp', str(port)]
            command += ['--web-ip', HOST, '--web', str(web), '--max-message-size', str(SIZE)]
            command += ['--mail-directory', str(self.mail / str(port)), '--verbose', *options]
            commands.append(command)
        return commands

    def start(self) -> None:
        super().start()
        for web in self.web_ports:
            self.root.until(lambda web=web: self._answers(web))

    def _answers(self, web: int) -> bool:
        try:
            return self._get(web, 'healthz') == b'true'
        except OSError:
            return False

    @staticmethod
    def _get(web: int, path: str) -> bytes:
        with urlopen(f'http://{HOST}:{web}/api/{path}', timeout=TIMEOUT) as answer:
            return answer.read()

    def _list(self, **wanted: str) -> list[Held]:
        return [
            Held(
                f'{web}/{each["id"]}',
                each['envelope']['from']['address'],
                frozenset(to['address'] for to in each['envelope']['to']),
            )
            for web in self.web_ports
            for each in json.loads(self._get(web, f'email?{urlencode(wanted)}'))
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
        web, _, id = mail.id.partition('/')
        return self._get(int(web), f'email/{id}/source')
