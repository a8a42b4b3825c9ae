"""A claimed mail: its letters, written in place, and the folder it goes to next."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress

from ..envelope import Envelope, Fate
from .format import STATE_AT, Block
from .names import schedule_of
from .store import Store

__all__ = ['MaildirClaim']

_LETTERS = {'sent': 'd', 'error': 'f', 'deferred': 'T'}


class MaildirClaim:
    """See IMailClaim. Made by ``MaildirQueue.claim`` for a file that is open and locked.

    An attempt writes ``S`` and no time of return; its outcome writes the letters and that time in
    one write, before the file is renamed. ``S`` without that time, found at a claim, means that
    somebody died over this mail.
    """

    def __init__(
        self,
        store: Store,
        descriptor: int,
        block: Block,
        folder: str,
        name: str,
        *,
        attempt: int,
        now: float,
        hold: bool,
    ) -> None:
        self._store = store
        self._descriptor: int | None = descriptor
        self._block = block
        self._folder = folder
        self._name = name
        self._hold = hold
        self._before: bytes | None = None
        self._settled = False
        self.attempt = attempt
        self.interrupted = ''
        if block.state == 'S' and not block.retry_at:
            self.interrupted = 'ambiguous' if '?' in block.letters else 'sending'
        self.todo: tuple[str, ...] = ()
        if folder in ('new', 'cur') and block.retry_at <= now:
            self.todo = self._with('T?')

    @property
    def envelope(self) -> Envelope:
        return self._block.envelope

    @property
    def since(self) -> float:
        return self._block.since

    @property
    def fates(self) -> list[Fate]:
        return self._block.fates()

    def begin(self) -> None:
        """Write ``S``: from now on a crash counts as an attempt. Raises OSError."""
        before = self._block.state_line()
        self._block.state, self._block.retry_at = 'S', 0.0
        self._write(self._block.state_line(), STATE_AT)
        self._before = before

    def sealing(self, recipients: Sequence[str]) -> None:
        self._letter(recipients, '?')
        self._write(self._block.recipient_lines(), self._block.letters_at)
        if self._hold:
            self._sync()

    def settle(
        self, fates: Sequence[Fate], *, retry_at: float | None = None, report: bool = True
    ) -> None:
        block = self._block
        if not self._settled:
            self._settled, self._before = True, None
            block.forget()
            for fate in fates:
                block.mark(fate, _LETTERS[fate.kind])
            block.retry_at = retry_at or 0.0
            if retry_at is not None:
                self.attempt += 1
            if not report:
                block.letters = [
                    letter.upper() if letter in 'df' else letter for letter in block.letters
                ]
        self._rest()

    def reported(self, fates: Iterable[Fate]) -> None:
        for fate in fates:
            if fate.kind != 'deferred':
                self._letter(fate.recipients, _LETTERS[fate.kind].upper())
        self._rest()

    def _rest(self) -> None:
        """Write down what is known and move the file to where it waits next."""
        block = self._block
        waiting = any(letter in 'T?' for letter in block.letters)
        try:
            if not waiting and not self.fates and 'F' not in block.letters:
                self._remove()
                return
            if not waiting:
                block.retry_at, block.state = 0.0, 'C'
            self._write(block.changing(), STATE_AT)
            if waiting:
                if 'd' in block.letters or 'D' in block.letters:
                    self._sync()
                self._move('cur', block.retry_at)
                block.state = 'C'
                self._write(b'C', STATE_AT)
            elif self.fates:
                self._move('done', block.envelope.queued_at)
            else:
                self._move('failed', block.since)
        except OSError as error:
            raise self._store.error('cannot record what became of a mail', error) from error
        if not self.fates:
            self.release()

    def postpone(self, fates: Iterable[Fate], due: float) -> None:
        tries = {
            (fate.attempt, int(fate.id.rpartition('-')[2])): fate.tries + 1 for fate in fates
        }
        for entry in self._block.entries:
            entry.tries = tries.get((entry.attempt, entry.group), entry.tries)
        try:
            self._write(self._block.changing(), STATE_AT)
            retry_at = self._block.retry_at
            self._move(self._folder, min(due, retry_at) if retry_at else due)
        except OSError as error:
            raise self._store.error('cannot record what became of an event', error) from error
        finally:
            self.release()

    def release(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        before, self._before = self._before, None
        if before is not None and '?' not in self._block.letters:
            # Where this fails ``S`` stays, and counts as an attempt; what was sealed stays so.
            with suppress(OSError):
                self._store.write(descriptor, before, STATE_AT)
        self._store.close(descriptor)

    def rename(self, folder: str, name: str) -> None:
        """Move the file, which stays claimed."""
        if (folder, name) != (self._folder, self._name):
            os.rename(
                self._store.path(self._folder, self._name), self._store.path(folder, name)
            )
            self._folder, self._name = folder, name

    def _move(self, folder: str, due: float) -> None:
        schedule = schedule_of(self.envelope, due=due, attempt=self.attempt)
        self.rename(folder, schedule.name)

    def _remove(self) -> None:
        try:
            os.unlink(self._store.path(self._folder, self._name))
        except FileNotFoundError:
            pass  # a person was quicker
        except OSError:
            # At least whoever finds it shall not send it again.
            self._write(self._block.changing(), STATE_AT)
            raise
        self.release()

    def _with(self, letters: str) -> tuple[str, ...]:
        return tuple(
            to
            for to, letter in zip(self.envelope.recipients, self._block.letters, strict=True)
            if letter in letters
        )

    def _letter(self, recipients: Iterable[str], letter: str) -> None:
        chosen = set(recipients)
        for n, to in enumerate(self.envelope.recipients):
            if to in chosen:
                self._block.letters[n] = letter

    def _write(self, data: bytes, at: int) -> None:
        if self._descriptor is None:
            raise OSError('the claim has been released')
        self._store.write(self._descriptor, data, at)

    def _sync(self) -> None:
        if self._descriptor is not None:
            self._store.sync_file(self._descriptor)
