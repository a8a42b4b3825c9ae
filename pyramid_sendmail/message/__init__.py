"""What an application writes, and how an envelope is made of it.

``message`` is what is written; ``composer`` takes it apart and freezes it; ``address`` and
``headers`` write the header lines; ``content``, ``attachment`` and ``part`` the parts of a message
of ours; ``copies`` and ``mime`` those of other people's; ``options`` are those of ``send``.
"""

from .attachment import Attachment
from .composer import Composer
from .message import Message

__all__ = ['Attachment', 'Composer', 'Message']
