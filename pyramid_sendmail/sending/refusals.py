"""A relay that refuses every mail in the same words: the account or the relay is wrong, not the
mails.

``554 5.7.1 Relay access denied`` to everything, ``550 5.4.5 Daily user sending limit exceeded`` and
the words of blocklists would otherwise make a dead letter of each mail that waits.
"""

from __future__ import annotations

import re
import threading

from ..envelope import Outcome, Reply, Verdict
from ..exceptions import MailerUnavailable

__all__ = ['IN_A_ROW', 'VARYING_WORDS', 'EveryMailRefused', 'NoMailTaken', 'Refusals']

IN_A_ROW = 5
"""Mails that are refused in the same words, one after the other, until it is the relay's fault."""

_CODE = r'[2-5]\d\d[,:;]?(?!\S)'

_ENHANCED = r'[245]\.\d{1,3}\.\d{1,3}[,:;]?(?!\S)'

VARYING_WORDS = re.compile(
    rf'(?<!\S)(?!{_ENHANCED}|(?:(?<=answered )|(?<=: )|(?<!.)){_CODE})\S*[\d@]\S*', re.DOTALL
)
"""What does not count where the words of two refusals are compared: addresses, times, session
numbers. A reply code, which stands at the start, behind 'answered' or behind a colon, does count,
and an enhanced one."""

_ENHANCED_CODE = re.compile(r'5\.(\d{1,3})\.(\d{1,3})\b')

_SENDERS_FAULT = ('7', '8')
"""X.1.7 and X.1.8 are about the sender's address (RFC 3463, 3.2): it is in a setting, as a rule."""

_WHO = r'\b(?:user|mailbox|recipient|account|address)\b'

_UNKNOWN_USER = re.compile(
    rf'{_WHO}.*\b(?:unknown|exist|found|disabled|unavailable|full)'
    rf'|\b(?:unknown|no such|invalid|inactive|disabled)\b.*{_WHO}',
    re.IGNORECASE,
)


class NoMailTaken(MailerUnavailable):
    """The relay opens sessions, and takes no mail over them."""


class EveryMailRefused(NoMailTaken):
    """The relay refuses every mail in the same words."""


class Refusals:
    """Counts the mails that a relay refuses in the same words. Thread-safe.

    From the fifth in a row on, a mail that is refused in these words is deferred, and the relay
    counts as unavailable; any other outcome ends that. Numbers and addresses in the words do not
    count, and a reply about a recipient (RFC 3463, X.1.x and X.2.x) never does.
    """

    def __init__(self, relay: str) -> None:
        self._relay = relay
        self._lock = threading.Lock()
        self._words = ''
        self._count = 0

    def judge(self, outcome: Outcome) -> tuple[Outcome, EveryMailRefused | None]:
        """Return the outcome that counts, and the error if the relay refuses every mail."""
        reply, words = _only_refusal(outcome)
        if not (words or self._count):
            return outcome, None  # the usual case, without the lock
        with self._lock:
            self._count = self._count + 1 if words and words == self._words else int(bool(words))
            self._words = words
            if self._count < IN_A_ROW:
                return outcome, None
            count = self._count
        text = (
            f'the relay has refused {count} mails in a row in the same words, so they are not at '
            'fault; mend the account, mail.url or mail.envelope_sender, then retry the first of '
            'them, in failed/'
        )
        verdict = Verdict('deferred', reply, f'{reply}: {text}')
        error = EveryMailRefused(f'{self._relay}: {text}: {reply}')
        return dict.fromkeys(outcome, verdict), error


def _only_refusal(outcome: Outcome) -> tuple[Reply | None, str]:
    """Return the reply by which all recipients were refused for good, in the same words, and what
    is compared of it."""
    found: Reply | None = None
    words = ''
    for verdict in outcome.values():
        reply = verdict.reply
        if verdict.status != 'failed' or reply is None:
            return None, ''
        if found is None:
            found, words = reply, _same_words(reply)
        elif reply != found and _same_words(reply) != words:
            return None, ''
    return found, words


def _same_words(reply: Reply) -> str:
    """Return what is compared of a reply; '' if it is about a recipient."""
    code = _ENHANCED_CODE.match(reply.text)
    if code is None:
        if _UNKNOWN_USER.search(reply.text):
            return ''
    elif code[1] == '2' or (code[1] == '1' and code[2] not in _SENDERS_FAULT):
        return ''
    return ' '.join(VARYING_WORDS.sub('', str(reply)).split())
