"""Which parts of the demo run. The supervisor (run.py) writes it down, and the page shows it.

The page can ask for a part to be stopped, by a file that the supervisor looks for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ['PartState', 'Parts']


class PartState(NamedTuple):
    """A part of the demo, which is a process."""

    state: str
    """'running'; 'stopping' or 'stopped', for the page asked for it; or 'starting'."""
    pid: int | None = None


class Parts:
    """``folder``: that of the demo."""

    def __init__(self, folder: Path) -> None:
        self._state = folder / 'parts.json'
        self._requests = folder / 'stopped'

    def stop(self, name: str) -> None:
        """Ask the supervisor to stop a part, and to leave it so."""
        self._requests.mkdir(mode=0o700, exist_ok=True)
        (self._requests / name).touch()

    def start(self, name: str) -> None:
        """Ask the supervisor to start it again."""
        (self._requests / name).unlink(missing_ok=True)

    def is_wanted(self, name: str) -> bool:
        return not (self._requests / name).exists()

    def write(self, states: Mapping[str, PartState]) -> None:
        """Write what the page shows. Only the supervisor does this."""
        facts = {'supervisor': os.getpid(), 'parts': states}
        written = self._state.with_suffix('.new')
        written.write_text(json.dumps(facts), encoding='utf-8')
        written.replace(self._state)

    def read(self) -> dict[str, PartState]:
        """Return the state of each part; nothing if no supervisor runs them."""
        try:
            facts = json.loads(self._state.read_text(encoding='utf-8'))
            os.kill(facts['supervisor'], 0)
        except OSError:
            return {}
        return {name: PartState(*state) for name, state in facts['parts'].items()}

    def clear(self, names: Mapping[str, object]) -> None:
        """Forget everything: no supervisor runs, and no part is stopped at the next start."""
        self._state.unlink(missing_ok=True)
        for name in names:
            self.start(name)
