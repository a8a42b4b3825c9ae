"""Where the demo listens and keeps its files; the environment can change both."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ['DEFAULT_PORT', 'ROOT', 'Locations']

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_PORT = 6543


@dataclass(frozen=True, slots=True)
class Locations:
    """What differs from development.ini; None: nothing does."""

    port: int | None = None
    """Port of the web page. The relay listens on the next one."""
    var: Path | None = None
    """The folder of the queue, the database and the relay's mail."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Locations:
        """Read ``DEMO_PORT`` and ``DEMO_VAR``; raise ValueError with the remedy if one is wrong."""
        port = environ.get('DEMO_PORT', '').strip()
        if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65535):
            raise ValueError(
                f'DEMO_PORT={port}: write a port number between 1 and 65534; '
                f'the relay listens on the next one'
            )
        var = environ.get('DEMO_VAR', '').strip()
        return cls(int(port) if port else None, Path(var).resolve() if var else None)

    @property
    def web_port(self) -> int:
        return self.port or DEFAULT_PORT

    @property
    def relay_port(self) -> int:
        return self.web_port + 1

    @property
    def folder(self) -> Path:
        """One for each port: demos that run at the same time share nothing."""
        return self.var or ROOT / 'demo' / 'var' / str(self.web_port)

    @property
    def delivered(self) -> Path:
        """The folder of the mails that the relay accepted."""
        return self.folder / 'delivered'

    def applied_to(self, settings: Mapping[str, str]) -> dict[str, str]:
        """Return the settings of development.ini with what differs."""
        moved = dict(settings)
        if self.port is not None:
            moved['mail.url'] = f'smtp://127.0.0.1:{self.relay_port}'
        if self.port is not None or self.var is not None:
            moved['mail.queue_path'] = str(self.folder / 'mail')
            moved['sqlalchemy.url'] = f'sqlite:///{self.folder / "demo.sqlite"}'
            moved['demo.folder'] = str(self.folder)
        return moved
