"""What the relays have in common, as the tests see them."""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import trustme

from tests.peers.roots import HOST, Folder, free_ports

__all__ = ['ANN', 'PASSWORD', 'SIZE', 'Certificate', 'Held', 'Ports', 'Relay']

ANN = 'ann'
"""Who may log in to every relay."""

PASSWORD = 'correct horse:battery+staple'

SIZE = 200_000
"""Bytes that a mail may have."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate for the loopback address, with its key."""

    leaf: trustme.LeafCert

    def write(self, path: Path, *, key: bool = True, chain: bool = True) -> None:
        """Write key and chain, or one of them, as root's own PEM file."""
        parts = [self.leaf.private_key_pem] if key else []
        parts += self.leaf.cert_chain_pems if chain else []
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b''.join(part.bytes() for part in parts))
        path.chmod(0o600)


@dataclass(frozen=True, slots=True)
class Held:
    """A mail in a relay's queue, as the relay lists it."""

    id: str
    sender: str
    recipients: frozenset[str]


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a relay listens."""

    plain: int
    """With STARTTLS, and AUTH behind it."""
    implicit: int
    """With TLS from the first byte."""
    login: int
    """With AUTH LOGIN alone, behind STARTTLS."""
    closed: int
    """The mail has no recipients."""
    crowded: int
    """To one connection at a time."""

    @classmethod
    def free(cls) -> Ports:
        return cls(*free_ports(len(cls.__dataclass_fields__)))


class Relay(ABC):
    """A mail server that takes mail for example.org and keeps it in its queue.

    It refuses ``nobody@example.org`` for good and ``later@example.org`` for now.
    """

    name: ClassVar[str]
    mails_a_session: ClassVar[int] = 300
    """More than the processor sends on one, where the relay takes as many."""
    failed_login: ClassVar[str]
    """What its log says, once for each password that was wrong."""

    def __init__(self, root: Folder, ports: Ports, commands: Sequence[Sequence[str]]) -> None:
        self.root = root
        self.ports = ports
        self._commands = commands
        self._servers: list[subprocess.Popen[bytes]] = []
        self.lacks: dict[str, str] = {}
        """What it has not, of the names that tests ask for, and why."""

    def start(self) -> None:
        """Start it; it has greeted when this returns."""
        self._servers = [self.root.start(*command) for command in self._commands]
        self.root.greets(self._servers[-1], self.ports.plain)

    def stop(self) -> None:
        """Stop it; what it holds stays."""
        servers, self._servers = self._servers, []
        self.root.stop(*servers)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Have it stopped for a while."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def remove(self) -> None:
        """Stop it and remove its root directory."""
        try:
            self.stop()
        finally:
            self.root.remove()

    @property
    def url(self) -> str:
        return f'smtp://{HOST}:{self.ports.plain}'

    @property
    def log(self) -> str:
        return self.root.log

    @abstractmethod
    def held(self) -> list[Held]:
        """List its queue, by the program that it has for it."""

    @abstractmethod
    def content(self, mail: Held) -> bytes:
        """Return a mail as it holds it, headers of its own in front, with CRLF line ends."""

    def mails(self, sender: str) -> list[Held]:
        """List the mail from one sender."""
        return [mail for mail in self.held() if mail.sender == sender]

    def offer(self, what: str) -> None:
        """Skip the test where the relay has not got this."""
        if what in self.lacks:
            pytest.skip(f'{self.name} has no {what}: {self.lacks[what]}')

    def sendmail(self) -> tuple[str, ...]:
        """The command of its sendmail program, where it has one."""
        raise NotImplementedError
