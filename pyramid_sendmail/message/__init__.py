"""What an application writes, and how an envelope is made of it.

``values`` are what is written; ``composer`` takes a message apart and freezes it; ``address`` and
``headers`` write the header lines; ``content``, ``attachment`` and ``part`` the parts of a message
of ours; ``copies`` and ``mime`` those of other people's; ``raw`` has the last look; ``options`` are
those of ``send``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .message import Attachment, Message

if TYPE_CHECKING:
    from .freeze import EnvelopeFactory

__all__ = ['Attachment', 'EnvelopeFactory', 'Message']


def __getattr__(name: str) -> Any:
    """``EnvelopeFactory``: who only writes messages does not wait for it (PEP 562)."""
    if name != 'EnvelopeFactory':
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from .freeze import EnvelopeFactory

    return EnvelopeFactory
