"""Remove dead letters that are old (``mail.keep_failed``)."""

from __future__ import annotations

import logging
import os
import stat
from contextlib import suppress

from ..history import printable
from ..in_doubt import needs_decision
from .filename import NEVER, parse
from .files import QueueFiles
from .format import EnvelopeBlock
from .history import remove_history
from .large_text import load

__all__ = ['DeadLetters']

log = logging.getLogger(__name__)

_KEPT_NAMES = 50_000
"""Names of files that stay, at most: they are remembered, so that no purge opens them again."""


class DeadLetters:
    """The mails in ``failed/``."""

    def __init__(self, files: QueueFiles) -> None:
        self._files = files
        self._kept: set[str] = set()

    def purge(self, before: float, limit: int) -> int:
        """See IScannableQueue.purge_failed. ``limit``: how many files are opened at most.

        Raises OSError; a file that caused one is skipped from then on.
        """
        opened = removed = 0
        with suppress(FileNotFoundError), self._files.entries('failed') as entries:
            for entry in entries:
                name = entry.name
                schedule = parse(name)
                if name in self._kept or schedule is None or schedule.due >= NEVER:
                    continue  # known, foreign or held
                with suppress(FileNotFoundError):
                    if not _is_old(entry.stat(follow_symlinks=False), before):
                        continue
                    opened += 1
                    removed += self._try_remove(name, before)
                if opened >= limit:
                    break
        return removed

    def _try_remove(self, name: str, before: float) -> bool:
        try:
            return self._remove(name, before)
        except FileNotFoundError:
            raise
        except (ValueError, OSError) as error:
            self._keep(name)
            if isinstance(error, OSError):
                raise
            return False

    def _remove(self, name: str, before: float) -> bool:
        """Remove a mail that is not claimed and needs no decision of a person; return whether it
        was removed. Raises ValueError if the file is not a mail of ours, and OSError."""
        descriptor = self._files.open('failed', name)
        if descriptor is None:
            return False
        try:
            # A person may have retried it meanwhile.
            if not _is_old(os.fstat(descriptor), before):
                return False
            block, _ = load(self._files, descriptor)
            reasons = _final_reasons(block)
            if not reasons:
                self._keep(name)
                return False
            # The history first: after a crash, nothing would remove one without a mail.
            self._files.lstat('failed', name)
            remove_history(self._files, block.envelope)
            self._files.unlink('failed', name)
        finally:
            self._files.close(descriptor)
        log.info(
            '%s: removed from failed/, older than mail.keep_failed: %s',
            block.envelope.message_id,
            reasons,
        )
        return True

    def _keep(self, name: str) -> None:
        if len(self._kept) < _KEPT_NAMES:
            self._kept.add(name)


def _final_reasons(block: EnvelopeBlock) -> str:
    """Return why the recipients of a mail failed; '' if it is unfinished or needs a decision."""
    if not set(block.letters) <= {'D', 'F'}:
        return ''
    used = {
        pointer
        for pointer, letter in zip(block.pointers, block.letters, strict=True)
        if letter == 'F'
    }
    answers = [block.entries[pointer] for pointer in sorted(used)]
    if any(
        needs_decision(attempt=answer.attempt, reply=answer.reply, reason=answer.reason)
        for answer in answers
    ):
        return ''
    words = dict.fromkeys(
        str(answer.reply) if answer.reason is None else answer.reason for answer in answers
    )
    return printable('; '.join(words))


def _is_old(found: os.stat_result, before: float) -> bool:
    """Whether a file has not changed since ``before``. The rename to failed/ counts as a change,
    and a time in the future is not old."""
    return stat.S_ISREG(found.st_mode) and max(found.st_ctime, found.st_mtime) < before
