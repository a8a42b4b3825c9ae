"""The contracts: what each part promises, when it is called and what is true afterwards.

A mail's way: ``IMailDelivery.send`` freezes a message into an envelope and joins the
transaction. The commit puts the envelope into an ``IMailQueue``. An ``IMailQueueProcessor``, or
the sending thread of direct delivery, claims it, sends it through a session of an ``IMailer``, and
records the outcome. An ``IMailEventDispatcher`` runs the subscribers of the ``IMailEvent``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zope.interface import Attribute, Interface

if TYPE_CHECKING:
    from datetime import datetime, timedelta
    from email.headerregistry import Address
    from threading import Event

    from .envelope import Envelope, Outcome, PendingEvent, Priority, Reply, Report, Tally
    from .queue.browsing import MailDetails, MailInfo, MailState, QueueStats
    from .queue.ticket import Ticket

__all__ = [
    'IBrowsableQueue',
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
    'IMailer',
    'IMonitoredQueue',
    'INamingQueue',
    'IQueuedMailDelivery',
    'ISMTPMailer',
    'IScannableQueue',
    'IStagedMail',
]


class IMailDelivery(Interface):
    """What happens to a message at commit: the registered utility, and ``request.mailer``."""

    def send(
        message: Any,
        *,
        sender: str | Address | None = None,
        recipients: str | Address | Sequence[str | Address | tuple[str | None, str]] | None = None,
        due: datetime | timedelta | None = None,
        expires: datetime | timedelta | None = None,
        priority: Priority | None = None,
        metadata: Mapping[str, str] | None = None,
        cause: IMailEvent | str | None = None,
    ) -> str:
        """Take a message into the current transaction and return its ``Message-ID``.

        ``message``: a :class:`pyramid_sendmail.Message`, an
        :class:`email.message.EmailMessage`, or anything with ``to_message()``.
        ``sender``, ``recipients``: the SMTP envelope, where it differs from the headers. A string
        is one address; several are a list.
        ``due``, ``expires``: an aware datetime, or a timedelta from now; the mail is sent not
        before the one, and never after the other. ``priority``: 'high', 'normal' or 'low'.
        ``metadata``: a small dict of strings, which the events carry.
        ``cause``: the event that this mail answers, or its id, where a subscriber has another
        thread or process send it. Mail that a subscriber sends itself, or by
        ``event.request.mailer``, needs none. A mail that reports the failure of a failure notice,
        and the sixth of mails that each follow the one before, is logged and not sent.

        Raises MessageError (a ValueError) if anything is wrong with the message, and
        NoActiveTransaction if no commit could send it. Afterwards the message is frozen, nothing
        is on disk, and the mail leaves if and only if the transaction commits.
        """

    def send_now(
        message: Any,
        *,
        sender: str | Address | None = None,
        recipients: str | Address | Sequence[str | Address | tuple[str | None, str]] | None = None,
    ) -> Report:
        """Send at once, whatever happens to any transaction; return a Report.

        Raises MessageError; MailerUnavailable if no connection to the relay can be used;
        MailRefused, with the report, if no recipient was accepted; MailAmbiguous if the
        connection broke before the relay's last reply. Dispatches no events.
        """

    def bind(tm: Any, environ: Mapping[str, object] | None = None) -> IMailDelivery:
        """Return this delivery bound to a transaction manager.

        ``environ``: the WSGI environment of the request, in which ``tm.active`` says that
        pyramid_tm has begun a transaction.
        """


class IQueuedMailDelivery(IMailDelivery):
    """Puts mail into the queue at commit; a queue processor sends it."""


class IDirectMailDelivery(IMailDelivery):
    """Hands mail to the relay at commit, from a thread of its own.

    With ``mail.queue_path``, mail that cannot be sent now stays in the queue; without it, mail is
    sent at most once. While the relay is unavailable, mail waits in memory for the next try, and is
    lost with its error event if that fails; so is what does not fit into memory.
    """

    def flush(timeout: float) -> bool:
        """Wait until all mail that was handed over is answered and its events are dispatched.

        Return False after ``timeout`` seconds. In a thread of this package, which runs
        subscribers, return at once. Mail that subscribers send meanwhile counts too. Mail that
        stays in the queue, and an event whose subscriber failed, are tried again later and not
        waited for. The connection stays open.
        """


class IMailQueue(Interface):
    """Where envelopes wait: what a delivery needs of a queue.

    Any number of processes and threads may use the same queue.
    """

    def put(envelopes: Sequence[Envelope]) -> IStagedMail:
        """First phase of the commit: store the envelopes so that they survive a crash.

        Nothing can be claimed before ``publish`` of the returned IStagedMail. Raises QueueError
        (an OSError) if the queue cannot store all of them; it keeps none of them then.
        """

    def claim(ticket: Ticket, *, settled: bool = False) -> IMailClaim | None:
        """Take a mail exclusively. Return None if it is claimed already, gone, or not due.

        ``settled``: only take a mail that has nothing left to send; leave any other untouched.
        Raises DamagedMail for a file that is not a mail of this queue, after moving it to
        ``failed/``, and QueueError if the queue cannot be used.
        """

    def close() -> None:
        """Close what is open. The queue opens it again when it is used again."""


class IScannableQueue(IMailQueue):
    """A queue that can list what is due: what a queue processor and direct delivery need."""

    def scan(
        now: float,
        *,
        limit: int = 20_000,
        fresh: bool = False,
        all_events: bool = False,
        on_first_page: Callable[[list[Ticket]], None] | None = None,
    ) -> tuple[list[Ticket], float | None]:
        """Return ``(tickets, next_due)``: what is due at ``now``, and when more will be.

        Times are epoch seconds. At most ``limit`` tickets, in the order in which to claim them:
        finished mail with pending events first, then new and deferred mail in turn, so that
        neither starves the other. ``next_due`` is None if nothing waits for a later time.

        ``fresh``: only scan new mail. A full scan also recovers what dead processes left behind.
        ``all_events``: pending events are due whatever their time.
        ``on_first_page(tickets)``: called at most once, if the scan takes long, with the first
        tickets found so far, in order. ``scan`` returns them again, unless mail was found that
        comes before them, or they are gone. Raises QueueError.
        """

    def next_page(limit: int) -> list[Ticket]:
        """Return at most ``limit`` further tickets of the last full scan, without a new scan.

        Some of the mails may be gone. An empty list means: scan again.
        """

    def check_writable() -> None:
        """Prove that the outcome of an attempt can be recorded now. Raises QueueError."""

    def prepare() -> None:
        """Create what is missing and prove that locks work here. Raises QueueError."""

    def sync() -> None:
        """Make the removal of delivered mail survive a power cut. Raises OSError."""

    def purge_failed(before: float, *, limit: int = 1_000) -> int:
        """Remove dead letters that failed before a time in epoch seconds; return how many.

        Examines at most ``limit`` mails, and claims each before it removes it. Keeps mail of
        which a recipient is in doubt or ambiguous, and damaged and foreign files. A file whose
        time is in the future is not old. Raises QueueError; what was removed until then is gone.
        """

    def wait(timeout: float) -> bool:
        """Sleep until mail is published or ``wake`` is called, at most ``timeout`` seconds.

        Return False after a time-out.
        """

    def wake() -> None:
        """End a ``wait`` of this process: the current one, or the next."""


class INamingQueue(IScannableQueue):
    """A queue that knows what has ended a ``wait``, so that it need not be scanned for it."""

    def take_new() -> list[Ticket] | None:
        """Return, once, the tickets of the mail that has ended the last wait; None if more than
        these may be new, or some of it is for later. Some of the mails may be gone."""


class IMonitoredQueue(Interface):
    """A queue that shows whether a queue processor serves it."""

    def renew_heartbeat(since: float) -> None:
        """Record that a queue processor of this process runs now, and since when, in epoch seconds.

        Never raises an Exception.
        """

    def last_heartbeat() -> float | None:
        """Return when a queue processor, of whatever process, did so last, in epoch seconds; None
        if that was never, or cannot be seen. Never raises an Exception."""

    def count_waiting(limit: int | None = None) -> tuple[int, float | None] | None:
        """Return how many mails are new or deferred, and when the most overdue of them was due, in
        epoch seconds, None if none is overdue; or None if there are more than ``limit``.

        Reads no mail, and no more of the listing than that. Raises QueueError.
        """


class IBrowsableQueue(Interface):
    """A queue that people can browse and repair: what commands and web pages need.

    Every change claims the mail first, so that it is safe beside running queue processors, and is
    one atomic step: after a crash the mail is where it was, or where it was to go.
    """

    def mails(state: MailState | None = None) -> Iterator[MailInfo]:
        """Iterate over the mails in one state, or in all, state by state in the order of STATES,
        the most urgent first in each.

        Reads no mail, only the listing of the queue: a mail may be gone, or in another state, by
        the time the caller looks at it. Raises QueueError; the call itself raises ValueError for an
        unknown state.
        """

    def get(id: str) -> MailDetails | None:
        """Return everything about the mail with this envelope id; None if there is none.

        Reads the mail without a claim, also while it is being sent. Raises QueueError.
        """

    def retry(mail: MailInfo) -> bool:
        """Make a failed, held or deferred mail due now.

        Failed or held: the recipients that wait, failed or are ambiguous are tried again, with a
        new retry period. An error event of theirs that no subscriber has handled yet is dropped.
        The attempts count from 0, or go on from the last outcome that the queue still keeps, that
        of a pending event; the ids of events name the time from which they count, so that no two
        events of a mail have the same id. Deferred: the recipients that
        wait or are ambiguous are tried again; attempts, events and retry period stay. Delivered
        recipients are never tried again.

        Return False, as all of these methods do, if the mail is gone, is being sent at this
        moment, or is in a state that the method is not for. Raises QueueError if the change
        cannot be recorded, or this user may not use the queue.
        """

    def hold(mail: MailInfo, reason: str = '') -> bool:
        """Stop a new or deferred mail from being sent until ``release`` or ``retry``.

        Its pending events wait until then, too. ``reason``: a text for the history of the mail.
        """

    def release(mail: MailInfo) -> bool:
        """Let a held mail go on where it was: with its attempts and the time it was due. The retry
        period counts from now, so that a mail that was held for long is not given up at once."""

    def drop(mail: MailInfo) -> bool:
        """Remove a mail for good, whatever its recipients have got. Not for finished mail whose
        events subscribers have not handled yet. No event reports it; the log has a line."""

    def stats() -> QueueStats:
        """Count the mails in each state, and find the most overdue one. Raises QueueError."""


class IStagedMail(Interface):
    """The second phase of a put.

    No method raises an Exception. Each may be called any number of times, in any order: the first
    call decides, and later calls complete it.
    """

    tickets: tuple[Ticket, ...] = Attribute('The tickets to claim, in the order of the envelopes.')

    def publish() -> None:
        """The transaction has committed: the mail can be claimed from now on."""

    def discard() -> None:
        """The transaction has aborted: remove the mail."""

    def keep_in_doubt() -> None:
        """It is unknown whether the transaction committed: keep the mail for a person to decide."""


class IMailClaim(Interface):
    """A mail that belongs to one worker until ``release``, or until its process ends."""

    envelope: Envelope = Attribute('The Envelope, with all of its recipients, finished ones too.')
    todo: tuple[str, ...] = Attribute('The recipients still to be tried, in order.')
    attempt: int = Attribute('How many attempts have been counted so far.')
    since: float = Attribute('When the retry policy began to count, in epoch seconds.')
    interrupted: str = Attribute(
        "How far a process got before it died: '' (none died), 'sending' (before the final dot), "
        "'ambiguous'."
    )
    ambiguous: tuple[str, ...] = Attribute(
        'The recipients in ``todo`` that a dead process left ambiguous.'
    )
    pending_events: Sequence[PendingEvent] = Attribute(
        'The PendingEvents that subscribers have not handled yet.'
    )

    def mark_ambiguous(recipients: Sequence[str]) -> None:
        """Record that the final dot is about to be sent for these recipients.

        If the process dies from now on, they are ambiguous. Raises QueueError.
        """

    def clear_ambiguous() -> None:
        """Take the mark back: the next hop has certainly not accepted the mail.

        If that cannot be recorded, the recipients stay ambiguous.
        """

    def settle(
        events: Sequence[PendingEvent], *, retry_at: float | None = None, report: bool = True
    ) -> None:
        """Record the outcome of an attempt.

        ``events``: one for each group of recipients with the same outcome; the kind 'deferred'
        leaves its recipients to be tried again. ``retry_at``: when those are due again, in epoch
        seconds; None if none remain. ``report``: keep the events and the claim until
        ``acknowledge`` or ``retry_events``; otherwise release the claim. Raises QueueError if the
        outcome cannot be recorded; the claim is kept then.
        """

    def acknowledge(events: Iterable[PendingEvent]) -> None:
        """Record that subscribers have handled these events. Raises QueueError."""

    def retry_events(events: Iterable[PendingEvent], due: float) -> None:
        """Record that subscribers failed to handle these events, and release the claim.

        ``due``: when to dispatch them again, in epoch seconds. Raises QueueError.
        """

    def release() -> None:
        """Let others claim the mail. Without a ``settle`` nothing has changed."""


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
    """A session with the next hop, used by one thread at a time."""

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
        with the recipients that may have the mail from then on: the accepted ones, or with
        CHUNKING all that were asked for. What it raises ends the session.

        Raises MailerUnavailable if the failure is not a mail's fault: envelopes that were pulled
        and have no outcome are untouched, even if ``before_final_dot`` was called for them. Raises
        nothing else for what a relay can do.
        """

    def close() -> None:
        """End the session properly if that is possible. Never raises."""

    def abandon() -> None:
        """Close the connection at once: in a forked child, or after a broken exchange."""


class IMailQueueProcessor(Interface):
    """Delivers what is due in a queue, in a process or a thread.

    A processor is made by a multi-adapter from the queue and the Pyramid registry, so that each
    kind of queue can have a processor of its own: ``factory(queue, registry, *, workers=None,
    batch=None)``, where the two numbers replace those of the settings. Ours is registered for
    IScannableQueue. To register another::

        config.registry.registerAdapter(factory, (IMyQueue, Interface), IMailQueueProcessor)
    """

    def run(stop: Event) -> None:
        """Deliver mail as it becomes due, until ``stop`` is set and ``wake`` is called.

        Finishes the mail in flight before it returns. Raises QueueError if the queue cannot be
        used at the start; later errors are logged, and the loop continues.
        """

    def run_once(
        progress: Callable[[Tally, int], None] | None = None, stop: Event | None = None
    ) -> Tally:
        """Deliver what is due now, and new mail that arrives meanwhile, each mail at most once.

        Return the counts. ``progress(tally, left)`` is called now and then, from this thread:
        the counts so far, and how many mails are known to be left. ``stop``: when it is set, the
        run ends after the mail in flight. Raises MailerUnavailable if no relay can be used, and
        QueueError if the queue cannot be used.
        """

    def wake() -> None:
        """Have ``run`` check the queue and ``stop`` now. Any thread or signal handler may call
        it."""


class IMailEventDispatcher(Interface):
    """Runs subscribers in a thread of its own: each event, or a batch of events, in a request and
    a transaction of its own.

    An application may register one of its own for this interface: before its configuration is
    committed, and with ``autocommit`` before it includes the package. Later ones are not used.
    """

    failures: int = Attribute('How many times a subscriber has failed to handle an event so far.')

    def wants(kind: str) -> bool:
        """Return whether a subscriber is registered for events of this kind: 'sent', 'deferred'
        or 'error'. Its predicates may still refuse every event."""

    def flush(timeout: float) -> bool:
        """Wait until no event is left to dispatch; False if ``timeout`` seconds were not enough."""

    def dispatch(claim: IMailClaim, events: Sequence[PendingEvent]) -> None:
        """Have the subscribers of a claim's events run, then acknowledge the events and release
        the claim.

        Returns at once. An event whose subscriber failed is tried again later; one of kind
        'deferred' is not. If too many claims wait already, the claim is released, and the events
        come back with a later scan of the queue.
        """


class IMailEvent(Interface):
    """The outcome of an attempt for some recipients of a mail."""

    id: str = Attribute('Identifies the event: the same each time it is dispatched.')
    message_id: str = Attribute('The Message-ID that send returned, angle brackets included.')
    sender: str = Attribute('The envelope sender.')
    recipients: tuple[str, ...] = Attribute('The recipients that this event is about.')
    subject: str = Attribute('The subject, as text.')
    tag: str | None = Attribute('The tag of the message, or None.')
    metadata: Mapping[str, str] = Attribute('The metadata given to send: a mapping of strings.')
    attempt: int = Attribute('The number of the attempt: 1 is the first.')
    queued_at: float = Attribute('When send was called, in epoch seconds.')
    mailer: str = Attribute('The relay and the version of TLS, without secrets.')
    request: Any = Attribute(
        'The request of the event or its batch, with a transaction of its own.'
    )


class IMailSentEvent(IMailEvent):
    """The relay has accepted the mail, and is responsible for it."""

    reply: Reply = Attribute('The reply of the relay: code and text.')


class IMailDeferredEvent(IMailEvent):
    """The mail could not be sent now and is tried again. Dispatched at most once."""

    reason: str = Attribute('Why, in words.')
    retry_at: float = Attribute('When it is tried again, in epoch seconds.')


class IMailErrorEvent(IMailEvent):
    """The mail has failed and is not tried again; if there is a queue, it is in ``failed/``."""

    reason: str = Attribute('Why, in words.')
    permanent: bool = Attribute('Whether another attempt would fail as well.')
    reply: Reply | None = Attribute('The reply of the relay, or None.')
    raw: bytes = Attribute('The bytes of the mail, so that nothing is lost.')
