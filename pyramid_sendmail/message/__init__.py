"""Messages: what an application writes, and how an envelope is made of it.

=================== ============================================================================
``message``         ``Message`` and ``Attachment``: the values that an application writes
``freeze``          ``EnvelopeFactory``: verifies a message and makes the envelope
``options``         the options of ``send``
``structure``       the MIME structure of our own messages
``references``      the pictures that html refers to
``attachment``      their files
``asset``           files at a path, or of a package
``mime``            their parts, as bytes
``foreign``         headers of messages of other libraries; ``foreign_head``, ``foreign_content``
                    and ``foreign_leaf``: their head, parts and bodies; ``foreign_freeze``: the
                    whole; ``foreign_parser``: mail that is attached, parsed within bounds
``verbatim``        what is signed, and leaves as it is
``frozen``          a message as bytes, before it has an envelope
``parameters``      parameters of MIME headers
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
