"""What the sessions of a mailer have learned about its relay, for those that come after them."""

from __future__ import annotations

import logging

__all__ = ['RelayMemory']

log = logging.getLogger(__name__)

BLAMED_AFTER = 5
"""A mail is deferred once its commands were refused as errors of the session so many times in a
row: it may be the only one that the relay does not understand, and must not block the others."""


class RelayMemory:
    """Facts about one relay. Threads may share it: each change is one assignment."""

    def __init__(self) -> None:
        self.pipelines_behind_dot = True
        """Whether commands may leave together with the final dot of the mail before."""
        self.max_recipients: int | None = None
        """How many recipients the relay takes in one mail transaction, if it has said so."""
        self._accepts = False
        """Whether it accepted a recipient since it last refused a command as such."""
        self._suspect = ''
        self._times = 0

    def accepted(self) -> None:
        """Record that a recipient was accepted."""
        self._accepts = True

    def refused_behind_dot(self, relay: str) -> None:
        """Record that commands which left together with a final dot were refused."""
        if self.pipelines_behind_dot:
            self.pipelines_behind_dot = False
            log.info(
                '%s refuses commands behind the final dot; they wait for its reply from now on',
                relay,
            )

    def too_many_recipients(self, accepted: int) -> None:
        """Record that it took so many recipients in one transaction, and no more."""
        limit = self.max_recipients
        self.max_recipients = accepted if limit is None else min(limit, accepted)

    def blames_mail(self, id: str) -> bool:
        """Return whether a refusal of the mail's commands is the mail's own fault, because others
        are accepted, and record it."""
        accepts, self._accepts = self._accepts, False
        self._times = self._times + 1 if id == self._suspect else 1
        self._suspect = id
        return accepts or self._times >= BLAMED_AFTER
