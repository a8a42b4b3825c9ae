"""Messages: what an application writes, and how an envelope is made of it.

=================== ============================================================================
``message``         ``Message`` and ``Attachment``: the values that an application writes
``freeze``          ``EnvelopeFactory``: verifies a message and makes the envelope
``options``         the options of ``send``
``structure``       the MIME structure of our own messages
``attachment``      their files
``asset``           files at a path, or of a package
``mime``            their parts, as bytes
``foreign``         messages of other libraries, as bytes
``headers``         header lines: what a header may hold, folding, parameters
``encoded_words``   text in headers (RFC 2047)
``text``            what is text, and what only looks like it
``address``         addresses as people write them, parsed
``address_header``  headers that hold addresses
``verify``          the last check of the bytes
=================== ============================================================================
"""

from __future__ import annotations

from .freeze import EnvelopeFactory
from .message import Attachment, Message

__all__ = ['Attachment', 'EnvelopeFactory', 'Message']
