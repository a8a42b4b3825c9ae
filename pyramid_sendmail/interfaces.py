"""The contracts: what each part promises, when it is called and what is true afterwards.

A mail's way: ``IMailDelivery.send`` freezes a message into an envelope and joins the
transaction; the commit puts it into an ``IMailQueue``; an ``IMailQueueProcessor`` (or the sending
thread of a direct delivery) claims it and sends it through an ``IMailer``'s session; what became
of it is an ``IMailEvent``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zope.interface import Attribute, Interface

if TYPE_CHECKING:
    from datetime import datetime, timedelta
    from threading import Event

    from .envelope import Envelope, Outcome, PendingEvent, Priority, Report

__all__ = [
    'IDirectMailDelivery',
    'IMailClaim',
    'IMailDeferredEvent',
    'IMailDelivery',
    'IMailErrorEvent',
    'IMailEvent',
    'IMailEventDispatcher',
    'IMailQueue',
    'IMailQueueProcessor',
    'IMailSentEvent',
    'IMailSession',
    'IMailSettings',
    'IMailer',
    'IQueuedMailDelivery',
    'ISMTPMailer',
    'IStagedMail',
]


class IMailDelivery(Interface):
    """What becomes of a message at commit; the utility, and what ``request.mailer`` is."""

    def send(
        message: Any,
        *,
        sender: str | None = None,
        recipients: Sequence[str] | None = None,
        due: datetime | timedelta | None = None,
        expires: datetime | timedelta | None = None,
        priority: Priority | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Take a message into the current transaction and return its ``Message-ID``.

        ``message``: a :class:`pyramid_sendmail.Message`, an
        :class:`email.message.EmailMessage`, or anything with ``to_message()``.
        ``sender``, ``recipients``: the SMTP envelope, where it differs from the headers.
        ``due``, ``expires``: an aware datetime, or a timedelta from now; not before, and
        never after. ``priority``: 'high', 'normal' or 'low'. ``metadata``: a small dict of
        strings, kept for the events.

        Raises MessageError (a ValueError) for whatever is wrong with the message and
        NoActiveTransaction where nothing would ever commit it. Afterwards the message is
        frozen, nothing is on disk, and it leaves if and only if the transaction commits.
        """

    def send_now(
        message: Any, *, sender: str | None = None, recipients: Sequence[str] | None = None
    ) -> Report:
        """Send at once, whatever becomes of any transaction; return a Report.

        Raises MessageError; MailerUnavailable when there is no session with the relay;
        MailRefused, with the report, when no recipient was accepted; MailAmbiguous when
        the relay's last word never came. Reports no events.
        """

    def bind(tm: Any, environ: Mapping[str, Any] | None = None) -> Any:
        """Return this delivery joined to the given transaction manager.

        ``environ``: the WSGI environment of the request, whose ``tm.active`` tells that
        pyramid_tm has begun a transaction.
        """


class IQueuedMailDelivery(IMailDelivery):
    """Puts mail into the queue at commit; a queue processor sends it."""


class IDirectMailDelivery(IMailDelivery):
    """Hands mail to the relay at commit, by a thread of its own.

    With ``mail.queue_path`` what cannot leave now stays in the queue; without it, delivery
    is at most once.
    """


class IMailQueue(Interface):
    """Where envelopes wait. One host; any number of processes and threads."""

    def put(envelopes: Sequence[Envelope]) -> Any:
        """First phase: store the envelopes so that they survive, and return an IStagedMail.

        Raises QueueError (an OSError) when that cannot be promised; nothing is left then.
        Nobody can claim them yet.
        """

    def scan(
        now: float,
        *,
        limit: int = 20_000,
        fresh: bool = False,
        all_events: bool = False,
        on_first_page: Callable[[list[Any]], None] | None = None,
    ) -> tuple[list[Any], float | None]:
        """Return ``(tickets, next_due)``: what is due, and when the next one will be.

        At most ``limit`` tickets, in the order in which to take them; fresh mail and
        retried mail in turn, so that neither starves the other. ``next_due`` is None when
        nothing else waits. ``fresh`` looks only where new mail arrives; ``all_events``
        counts events to be reported as due whatever their time. A full look also
        recovers what stopped processes left behind. ``on_first_page(tickets)`` is called once if the look
        takes long, with the first of what it has found until then, in order; they are among the
        tickets returned, unless mail was found that comes before them or they have gone.
        """

    def next_page(limit: int) -> list[Any]:
        """Return more of what the last full look found, in order, without looking: some of it may
        have gone. Empty when that is all, or was not kept: look again."""

    def claim(ticket: Any, *, settled: bool = False) -> Any:
        """Take a mail exclusively and return an IMailClaim, or None if it is not to be had.

        ``settled``: only if there is nothing left to send; the mail is not touched otherwise.
        Raises DamagedMail for what is no mail of ours, after it was put aside.
        """

    def check_writable() -> None:
        """Prove that an outcome can be recorded now. Raises QueueError."""

    def prepare() -> None:
        """Make what is missing and prove that locks work here. Raises QueueError."""

    def sync() -> None:
        """Make the removal of what was delivered survive a power cut. Raises OSError."""

    def purge_failed(before: float, *, limit: int = 1_000) -> int:
        """Remove dead letters that failed before that time, in epoch seconds; return how many.

        Looks at ``limit`` mails at most. Each is claimed first. Only mail of which every
        recipient is settled goes: what is in doubt, ambiguous, damaged or foreign stays. A time
        to come is not old. Raises QueueError; what was removed is gone then.
        """

    def wait(timeout: float) -> bool:
        """Sleep until mail was published, ``wake`` was called or ``timeout`` seconds passed.

        Returns True if it was woken.
        """

    def wake() -> None:
        """End a ``wait`` of this process, now or next."""

    def close() -> None:
        """Give up descriptors; the queue can be used again afterwards."""


class IStagedMail(Interface):
    """The second phase of a put. No method raises an Exception; each may be called in any
    order, any number of times; the first of them decides, and is completed by the others."""

    tickets = Attribute('What to claim, in the order of the envelopes.')

    def publish() -> None:
        """The transaction has committed: from now on the mail can be claimed."""

    def discard() -> None:
        """The transaction has aborted: nothing is left."""

    def keep_in_doubt() -> None:
        """Nobody knows whether the transaction committed: keep the mail for a person's eye."""


class IMailClaim(Interface):
    """A mail that is ours alone until ``release``, or until this process ends."""

    envelope = Attribute('The Envelope, with every recipient it ever had.')
    todo = Attribute('The recipients still to be tried, in order.')
    attempt = Attribute('How many attempts have been counted so far.')
    since = Attribute('When the retry policy began to count, in epoch seconds.')
    interrupted = Attribute(
        "'' or what a stopped process left: 'sending' (before the final dot) or 'ambiguous'."
    )
    ambiguous = Attribute('Those of ``todo`` that a stopped process has left in doubt.')
    pending_events = Attribute('The PendingEvents that subscribers have not yet taken.')

    def mark_ambiguous(recipients: Sequence[str]) -> None:
        """The final dot is about to leave for these: a crash from now on is ambiguous."""

    def clear_ambiguous() -> None:
        """It is certain now that the next hop has not taken it: all is as before ``before_final_dot``.
        Where that cannot be written down the doubt stays."""

    def settle(
        events: Sequence[PendingEvent], *, retry_at: float | None = None, report: bool = True
    ) -> None:
        """Record what an attempt came to.

        ``pending_events``: Fates, of which those of kind 'deferred' change no recipient. ``retry_at``:
        when the remaining recipients are due again, in epoch seconds; None when none remain.
        ``report``: whether there is anybody to tell; the claim is kept then, for ``acknowledge``.
        Without it the claim is released. Raises QueueError when it cannot be recorded; the claim
        is kept then.
        """

    def acknowledge(events: Iterable[PendingEvent]) -> None:
        """Subscribers have taken these."""

    def retry_events(events: Iterable[PendingEvent], due: float) -> None:
        """Subscribers could not take these; ``due``: when to report them again."""

    def release() -> None:
        """Let others claim it; where no attempt was settled, nothing has changed."""


class IMailer(Interface):
    """How an envelope leaves this machine. Thread-safe; holds no connection itself."""

    name: str = Attribute('Where it sends to, for people: no secrets.')

    def connect() -> IMailSession:
        """Return a session. Raises MailerUnavailable, whatever went wrong."""


class ISMTPMailer(IMailer):
    """Sends to a relay host by SMTP (RFC 5321)."""

    host: str = Attribute('Host name or address of the relay.')
    port: int = Attribute('TCP port of the relay.')


class IMailSession(Interface):
    """A session with the next hop, used by one thread at a time.

    The class may have ``cooperative = True``: the session enters
    :class:`pyramid_sendmail.threads.blocking` wherever it waits, so that the workers of a queue
    processor can compute in turn.
    """

    name: str = Attribute(
        'Where it sends to, for people: the name of the mailer that connected, and in parentheses '
        'the version of TLS, if any: ``smtp://relay:587 (TLSv1.3)``.'
    )

    def send(
        envelopes: Iterable[Envelope],
        *,
        before_final_dot: Callable[[Envelope, Sequence[str]], object] | None = None,
    ) -> Iterator[Outcome]:
        """Send each envelope and yield an Outcome for each, in order.

        ``envelopes``: pulled one by one; the next may be pulled before the final dot of the last
        one has left, so pulling must not wait.

        ``before_final_dot(envelope, recipients)``: called before the text of a mail is complete,
        with the recipients that the next hop has accepted, or was asked about if the text does
        not wait for the answer. What it raises ends the session.

        Raises MailerUnavailable if the failure is not a mail's fault: envelopes that were pulled
        and have no outcome are untouched, even if ``before_final_dot`` was called for them. Raises
        nothing else for what a relay can do.
        """

    def close() -> None:
        """End the session properly if that is possible. Never raises."""

    def abandon() -> None:
        """Close the connection at once: in a forked child, or after a broken exchange."""


class IMailQueueProcessor(Interface):
    """The loop that drains a queue, in a process or a thread."""

    def run(stop: Event) -> None:
        """Deliver what is due, as it comes, until ``stop`` (a threading.Event) is set and ``wake``
        called; what is in flight is finished."""

    def run_once(
        progress: Callable[[Any, int], None] | None = None, stop: Event | None = None
    ) -> Any:
        """Deliver what is due now, and fresh mail that arrives meanwhile, no mail twice.

        ``progress(tally, left)`` is called now and then, from this thread. ``stop``: ends it
        early, after what is in flight.

        Returns a Tally. Raises MailerUnavailable when no relay could be used and
        QueueError when the queue cannot be used.
        """

    def wake() -> None:
        """Look at the queue, or at ``stop``, now."""


class IMailEventDispatcher(Interface):
    """Tells subscribers, each event in a request and a transaction of its own, or a batch of those
    that wait in one.

    A reporter may have a ``turn``, which sessions with ``cooperative`` take as well: see
    :class:`pyramid_sendmail.threads.CooperativeLock`.
    """

    def wants(kind: str) -> bool:
        """Whether anybody subscribes to 'sent', 'deferred' or 'error'."""

    def join(timeout: float) -> bool:
        """Wait until nothing is left to report; False if ``timeout`` seconds were not enough."""

    def dispatch(claim: Any, events: Sequence[PendingEvent]) -> None:
        """Report the pending events of a claim from the events thread, then release the claim."""


class IMailSettings(Interface):
    """The parsed ``mail.*`` settings, a registered utility."""


class IMailEvent(Interface):
    """What became of a mail. ``id`` is the same each time the event is reported again."""

    id = Attribute('Identifies the event: the same when it is reported a second time.')
    message_id = Attribute('The Message-ID that send returned, angle brackets included.')
    sender = Attribute('The envelope sender.')
    recipients = Attribute('The recipients that this event is about.')
    subject = Attribute('The subject, as text.')
    tag = Attribute('The tag of the message, or None.')
    metadata = Attribute('The metadata given to send: a mapping of strings.')
    attempt = Attribute('Which attempt this was: 1 is the first.')
    queued_at = Attribute('When send was called, in epoch seconds.')
    mailer = Attribute('Where it went, and by which version of TLS, without secrets.')
    request = Attribute('The request of the event or its batch, with a transaction of its own.')


class IMailSentEvent(IMailEvent):
    """The next hop has taken responsibility."""

    reply = Attribute('Its answer: code and text.')


class IMailDeferredEvent(IMailEvent):
    """Not now; it will be tried again. Reported at most once."""

    reason = Attribute('Why, in words.')
    retry_at = Attribute('When it is tried again, in epoch seconds.')


class IMailErrorEvent(IMailEvent):
    """It has failed, and lies in ``failed/`` if there is a queue."""

    reason = Attribute('Why, in words.')
    permanent = Attribute('Whether another attempt would be of no use.')
    reply = Attribute('The answer of the relay, or None.')
    raw = Attribute('The bytes, so that nothing is lost.')
