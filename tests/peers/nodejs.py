"""Relays that are written for Node.js, as ``tests/peers/install-node`` installs them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from tests.peers.relay import Certificate, Held, Ports, Relay
from tests.peers.roots import Folder, unpacked

__all__ = ['NodeRelay', 'missing_package']

_SOURCES = Path(__file__).with_name('node')


def missing_package(name: str) -> str:
    """Why the peer of this npm package cannot be run here, or ''."""
    installed = unpacked() / 'node'
    if not (installed / 'node_modules' / name).is_dir():
        return f'no {name} in {installed}: run tests/peers/install-node'
    if not (installed / 'bin/node').exists():
        return f'no Node.js for {name}: run tests/peers/install-node'
    return ''


class NodeRelay(Relay):
    """One of them. What it keeps is in its folder ``mail``, unless it says otherwise."""

    source: ClassVar[str] = ''
    """The file of tests/peers/node that it needs, if it does."""

    def __init__(self, certificate: Certificate) -> None:
        root = Folder(self.name)
        super().__init__(root, Ports.free(), [])
        (root.path / 'node_modules').symlink_to(unpacked() / 'node/node_modules')
        self.mail.mkdir()
        certificate.write(root.path / 'key.pem', chain=False)
        certificate.write(root.path / 'chain.pem', key=False)
        if self.source:
            shutil.copy(_SOURCES / self.source, root.path)
        self._commands = [
            (str(unpacked() / 'node/bin/node'), *command) for command in self.furnish(root)
        ]
        self.lacks = {
            'CHUNKING': 'it does not offer it',
            'limit of mails': 'a session may carry as many as it likes',
        }

    def furnish(self, root: Folder) -> Sequence[Sequence[str]]:
        """Write its settings; return the arguments of Node.js for each of its processes."""
        raise NotImplementedError

    @property
    def mail(self) -> Path:
        return self.root.path / 'mail'

    def held(self) -> list[Held]:
        envelopes = [json.loads(file.read_bytes()) for file in self.mail.glob('*.json')]
        return [
            Held(each['id'], each['sender'], frozenset(each['recipients'])) for each in envelopes
        ]

    def content(self, mail: Held) -> bytes:
        return (self.mail / f'{mail.id}.eml').read_bytes()
