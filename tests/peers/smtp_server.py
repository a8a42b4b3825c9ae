"""Nodemailer's smtp-server, a library: a script of ours starts it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from tests.peers.nodejs import NodeRelay
from tests.peers.relay import ANN, PASSWORD, SIZE
from tests.peers.roots import HOST, Folder

__all__ = ['SMTPServer']


class SMTPServer(NodeRelay):
    """One process, with a server on each port."""

    name = 'smtp-server'
    source = 'server.mjs'
    failed_login = 'wrong password'

    def furnish(self, root: Folder) -> Sequence[Sequence[str]]:
        settings = {
            'host': HOST,
            'ports': asdict(self.ports),
            'folder': str(self.mail),
            'key': 'key.pem',
            'cert': 'chain.pem',
            'size': SIZE,
            'name': ANN,
            'password': PASSWORD,
        }
        root.write('settings.json', json.dumps(settings))
        return [(self.source, 'settings.json')]
