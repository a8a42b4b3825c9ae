"""Domain names as DNS and SMTP carry them: in ASCII."""

from __future__ import annotations

import unicodedata

__all__ = ['ascii_domain']


def ascii_domain(domain: str) -> str:
    """Return a domain with A-labels (IDNA 2008, RFC 5891) for the labels that are not ASCII.

    Capital letters become small ones; nothing else is mapped. IDNA 2003 made ``ss`` of ``ß`` and
    took joiners away, and so led to the domain of another owner. Raises UnicodeError for a label
    without a certain ASCII form; an ASCII label is not checked.
    """
    if domain.isascii():
        return domain
    if len(domain) > 253:
        raise UnicodeError('a domain has at most 253 characters')
    # Letter by letter, as Unicode's IDNA mapping (UTS 46): str.lower() makes a final sigma, which
    # is another letter here.
    lowered = ''.join(character.lower() for character in domain)
    labels = unicodedata.normalize('NFC', lowered).split('.')
    return '.'.join(label if label.isascii() else _a_label(label) for label in labels)


def _a_label(label: str) -> str:
    # Few processes meet such a domain, and the tables of the package take 0.9 MB.
    import idna

    try:
        return idna.alabel(label).decode('ascii')
    except idna.IDNAError:
        # IDNA 2008 has no symbols, and some registries sell them: i❤.ws. What IDNA 2003 leaves as
        # it is has one form in both.
        encoded = label.encode('idna')
        if encoded.decode('idna') != label:
            raise
        return encoded.decode('ascii')
