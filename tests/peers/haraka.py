"""Haraka, with a plugin of ours that refuses who is to be refused and keeps the rest."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tests.peers.nodejs import NodeRelay
from tests.peers.relay import ANN, PASSWORD, SIZE, Certificate
from tests.peers.roots import HOST, Folder

__all__ = ['Haraka']

# A greeting of two lines. A line of 998 bytes stays whole, with CRLF and a dot in front; by its
# default, 992, Haraka breaks it.
_CONNECTION = f"""
[haproxy]
enabled=true
[headers]
max_lines=1000
max_received=100
[max]
bytes={SIZE}
mime_parts=1000
line_length=512
data_line_length=1001
[message]
greeting[]=Haraka
greeting[]=at your service
helo=Haraka is at your service.
close=closing connection. Have a jolly good day.
[uuid]
banner_chars=6
deny_chars=0
"""


class Haraka(NodeRelay):
    """One process, with its own TLS and AUTH."""

    name = 'haraka'
    source = 'keep.js'
    failed_login = 'S: 535 '

    def __init__(self, certificate: Certificate) -> None:
        super().__init__(certificate)
        self.lacks |= {
            'AUTH LOGIN alone': 'its mechanisms are the same on each port',
            'limit of connections': 'its plugin for that needs Redis',
        }

    def furnish(self, root: Folder) -> Sequence[Sequence[str]]:
        ports = self.ports
        listen = ','.join(f'{HOST}:{port}' for port in (ports.plain, ports.implicit, ports.closed))
        root.write('config/smtp.ini', f'listen={listen}', f'smtps_port={ports.implicit}', 'nodes=0')
        root.write('config/connection.ini', _CONNECTION)
        root.write('config/me', 'haraka.example.org')
        root.write('config/loglevel', 'LOGPROTOCOL')
        root.write('config/plugins', 'tls', 'auth/flat_file', 'keep')
        (root.path / 'key.pem').rename(root.path / 'config/tls_key.pem')
        (root.path / 'chain.pem').rename(root.path / 'config/tls_cert.pem')
        root.write(
            'config/auth_flat_file.ini',
            '[core]',
            'methods=PLAIN,LOGIN',
            '[users]',
            f'{ANN}={PASSWORD}',
        )
        settings = {'folder': str(self.mail), 'closed': ports.closed}
        root.write('config/keep.json', json.dumps(settings))
        (root.path / 'queue').mkdir()
        (root.path / 'plugins').mkdir()
        (root.path / self.source).rename(root.path / 'plugins' / self.source)
        return [('node_modules/haraka/bin/haraka', '-c', str(root.path))]
