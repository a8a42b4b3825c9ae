"""Where envelopes wait: a Maildir on disk, or memory."""

from .maildir import MaildirQueue
from .memory import MemoryQueue

__all__ = ['MaildirQueue', 'MemoryQueue']
