"""The text of a mail as it follows DATA, with dots doubled (RFC 5321, 4.5.2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ....envelope import Envelope

__all__ = ['stuffed', 'stuffed_text']


def stuffed(blocks: Iterable[bytes], *, has_dots: bool = True) -> Iterator[bytes]:
    """Yield the blocks with dots at line starts doubled; the last block ends with CRLF.CRLF.

    ``has_dots``: False if no line begins with a dot.
    """
    # The text begins at a line start.
    before, held = b'\r\n', b''
    for block in blocks:
        if held:
            yield held
        held = _doubled(before, block) if has_dots else block
        before = block[-2:] if len(block) > 1 else before[-1:] + block
    yield held + (b'.\r\n' if before == b'\r\n' else b'\r\n.\r\n')


def stuffed_text(envelope: Envelope) -> bytes:
    """Return a whole text with dots at line starts doubled, and CRLF.CRLF at its end."""
    text = envelope.raw
    if envelope.has_dots:
        text = _doubled(b'\r\n', text)
    return text + (b'.\r\n' if text.endswith(b'\r\n') or not text else b'\r\n.\r\n')


def _doubled(before: bytes, block: bytes) -> bytes:
    """Return the block with its dots doubled; ``before``: the two bytes in front of it."""
    if b'.' not in block:
        return block
    text = block.replace(b'\r\n.', b'\r\n..')
    if before == b'\r\n' and block.startswith(b'.'):
        return b'.' + text
    if before.endswith(b'\r') and block.startswith(b'\n.'):
        return b'\n.' + text[1:]
    return text
