"""Where envelopes wait: a Maildir on disk, or memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .maildir.queue import MaildirQueue
    from .memory import MemoryQueue

__all__ = ['MaildirQueue', 'MemoryQueue']


def __getattr__(name: str) -> Any:
    """Each is imported by who uses it (PEP 562): hardly any process has both."""
    if name == 'MaildirQueue':
        from .maildir.queue import MaildirQueue

        return MaildirQueue
    if name == 'MemoryQueue':
        from .memory import MemoryQueue

        return MemoryQueue
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
