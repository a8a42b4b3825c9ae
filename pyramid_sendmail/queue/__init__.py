"""Where envelopes wait: a Maildir on disk, or memory.

``maildir/`` is the queue on disk, ``memory`` the one for direct delivery without a Maildir and for
tests. ``ticket`` is what a scan returns and a claim is made with; ``in_doubt`` is about mail that
needs a person's decision; ``browsing``, ``history`` and ``memory_browser`` are for people who look
into a queue.
The contracts are IScannableQueue and IBrowsableQueue in ``pyramid_sendmail.interfaces``.
"""

from __future__ import annotations

from .maildir.queue import MaildirQueue
from .memory import MemoryQueue

__all__ = ['MaildirQueue', 'MemoryQueue']
