"""The text of a mail as it follows DATA (RFC 5321, 4.5.2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

__all__ = ['stuffed']


def stuffed(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the blocks with dots doubled at line starts; CRLF.CRLF comes with the last of them."""
    # A text begins as a line does.
    before, held = b'\r\n', b''
    for block in blocks:
        if held:
            yield held
        held = _doubled(before, block)
        before = block[-2:] if len(block) > 1 else before[-1:] + block
    yield held + (b'.\r\n' if before == b'\r\n' else b'\r\n.\r\n')


def _doubled(before: bytes, block: bytes) -> bytes:
    """``before``: the two octets in front of the block."""
    if b'.' not in block:
        return block
    text = block.replace(b'\r\n.', b'\r\n..')
    if before == b'\r\n' and block.startswith(b'.'):
        return b'.' + text
    if before.endswith(b'\r') and block.startswith(b'\n.'):
        return b'\n.' + text[1:]
    return text
