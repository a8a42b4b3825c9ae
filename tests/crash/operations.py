"""Everything that the queue does, as operations that can be stopped or made to fail.

An operation is a generator: what comes before its first ``yield`` has been done before, and is not
watched; each ``yield`` names the phase that follows it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pyramid_sendmail.envelope import Envelope, Tally, Verdict
from pyramid_sendmail.exceptions import DamagedMail, QueueError
from pyramid_sendmail.processor.options import ProcessorOptions
from pyramid_sendmail.processor.processor import QueueProcessor
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.browsing import MailInfo
from pyramid_sendmail.queue.maildir.format import STATE_AT
from pyramid_sendmail.sending.attempt import attempt
from tests.crash.place import BAD, GOOD, LATER, Place, Relay, mail
from tests.support.queues import NOW, forked, reap

__all__ = ['OPERATIONS', 'Operation']

Steps = Iterator[str]
Variant = dict[str, Any]


def _nothing(place: Place) -> None:
    """Leave everything as it is."""


@dataclass(frozen=True, slots=True)
class Operation:
    """``lay``: what lies on disk before; ``check``: what else is true after recovery; ``bare``: not
    even the folders are there."""

    name: str
    steps: Callable[[Place], Steps]
    mails: tuple[Envelope, ...] = ()
    lay: Callable[[Place], None] = _nothing
    check: Callable[[Place], None] = _nothing
    variants: tuple[Variant, ...] = ({'sync': True}, {'sync': False})
    bare: bool = False


SUBSCRIBED = ('sent', 'error')

ONE = (mail('a', 'good'),)
WEEK = 7 * 24 * 3600
OLD, OLD_LATER = ((mail('a', word, queued_at=NOW - WEEK),) for word in ('good', 'later'))
THREE = (mail('a', 'good', 'good'), mail('b', 'good'), mail('c', 'good', 'bad'))


# Transactions


def _enqueue(place: Place) -> Steps:
    queue = place.queue()
    os.mkfifo(place.path / 'trigger', 0o600)
    listener = place.queue()
    listener.wait(0)
    yield 'put'
    put = queue.put(place.mails)
    place.ledger.mark('committed', *(envelope.id for envelope in place.mails))
    yield 'publish'
    put.publish()


def _discard(place: Place) -> Steps:
    put = place.queue().put(place.mails)
    yield 'discard'
    put.discard()


def _doubt(place: Place) -> Steps:
    put = place.queue().put(place.mails)
    yield 'keep_in_doubt'
    put.keep_in_doubt()


def _left(letter: str) -> Callable[[Place], None]:
    """Return a set-up: a process stopped while its record had this letter."""

    def lay(place: Place) -> None:
        def work() -> None:
            put = place.queue().put(place.mails)
            with open(place.path / 'tmp' / put.tickets[0].order, 'r+b') as file:
                file.seek(STATE_AT)
                file.write(letter.encode())

        assert reap(forked(work)) == 0
        if letter == 'C':
            place.committed |= {envelope.id for envelope in place.mails}

    return lay


def _scan(place: Place) -> Steps:
    queue = place.queue()
    yield 'scan'
    queue.scan(place.clock.now)


# Claims


def _queued(place: Place) -> None:
    place.queue().put(place.mails).publish()
    place.committed |= {envelope.id for envelope in place.mails}
    place.forget()


def _claimed(place: Place) -> Any:
    queue = place.queue()
    (ticket,), _ = queue.scan(place.clock.now)
    claim = queue.claim(ticket)
    assert claim is not None
    return claim


def _claim(place: Place) -> Steps:
    queue = place.queue()
    (ticket,), _ = queue.scan(place.clock.now)
    yield 'claim'
    claim = queue.claim(ticket)
    if claim is not None:
        yield 'release'
        claim.release()


def _mark_ambiguous(place: Place) -> Steps:
    claim = _claimed(place)
    yield 'mark_ambiguous'
    claim.mark_ambiguous(claim.envelope.recipients)
    yield 'ambiguous'
    place.ledger.mark('accepted', claim.envelope.id, *claim.envelope.recipients)


VERDICTS = {'good': GOOD, 'later': LATER, 'bad': BAD, 'mended': BAD}


def _leave(place: Place, claim: Any) -> dict[str, Verdict]:
    """Return the outcome of the relay's replies, with the marks and the ledger up to it."""
    outcome = {to: VERDICTS[to.partition('@')[0].rstrip('0123456789')] for to in claim.todo}
    accepted = [to for to, verdict in outcome.items() if verdict is GOOD]
    if accepted:
        claim.mark_ambiguous(accepted)
        place.ledger.mark('accepted', claim.envelope.id, *accepted)
    for to, verdict in outcome.items():
        if verdict is not GOOD:
            place.ledger.mark('deferred', claim.envelope.id, to)
    return outcome


def _settle(place: Place) -> Steps:
    claim = _claimed(place)
    outcome = _leave(place, claim)
    recorder = place.recorder()
    yield 'settle'
    try:
        recorder.record_outcome(claim, outcome, Relay.name)
    except QueueError:
        place.kept(claim)
        yield 'record'
        recorder.write_unrecorded()


def _retry_events(place: Place) -> Steps:
    place.dispatcher.refuse = True
    yield from _settle(place)


def _sent_and_stopped(place: Place) -> None:
    """A process stopped when all was done but the event."""
    _queued(place)

    def work() -> None:
        claim = _claimed(place)
        outcome = _leave(place, claim)
        recorder = place.recorder()
        events, retry_at = recorder._classify(claim, outcome, Relay.name, ())
        claim.settle(events, retry_at=retry_at)

    assert reap(forked(work)) == 0


def _stopped(*, ambiguous: bool) -> Callable[[Place], None]:
    """A process stopped during an attempt."""

    def lay(place: Place) -> None:
        _queued(place)

        def work() -> None:
            claim = _claimed(place)
            if ambiguous:
                claim.mark_ambiguous(claim.envelope.recipients)

        assert reap(forked(work)) == 0

    return lay


# Attempts


def _attempt(place: Place) -> Steps:
    queue, recorder, connection = place.queue(), place.recorder(), place.connection()
    yield 'attempt'
    tickets, _ = queue.scan(place.clock.now, all_events=True)
    try:
        attempt(place.claims(queue, tickets), connection, recorder, Tally())
    except QueueError:
        if recorder.unrecorded:
            place.kept(recorder.unrecorded[0][0])
            yield 'record'
            recorder.write_unrecorded()
        else:
            raise


def _process(place: Place) -> Steps:
    recorder = place.recorder()
    dispatcher: Any = place.dispatcher
    processor = QueueProcessor(
        place.queue(),
        Relay(place.ledger),
        dispatcher,
        recorder,
        ProcessorOptions(workers=1, pause=0.0),
    )
    yield 'run'
    processor.run_once()


def _failed_and_moved(place: Place) -> None:
    """A dead letter, which one recipient received, was moved from failed/ to new/ by hand."""
    _queued(place)
    claim = _claimed(place)
    place.recorder().record_outcome(claim, _leave(place, claim), Relay.name)
    place.forget()
    (path,) = (place.path / 'failed').iterdir()
    path.rename(place.path / 'new' / path.name)


def _all_sorts(place: Place) -> None:
    """Put mail in every state that a processor can find."""
    sorts = {id: tuple(m for m in place.mails if m.id[0] == id) for id in '123456789'}
    everything = place.mails
    for id, lay in {
        '1': _queued,
        '2': _queued,
        '3': _queued,
        '4': _stopped(ambiguous=False),
        '5': _stopped(ambiguous=True),
        '6': _sent_and_stopped,
        '7': _left('V'),
        '8': _left('C'),
        '9': _left('W'),
    }.items():
        place.mails = sorts[id]
        hidden = [(path, path.with_name(f'.{path.name}')) for path in _files(place)]
        for path, other in hidden:
            path.rename(other)
        lay(place)
        for path, other in hidden:
            other.rename(path)
    place.mails = everything


def _files(place: Place) -> list[Any]:
    return [path for folder in ('tmp', 'new', 'done') for path in (place.path / folder).iterdir()]


ALL_SORTS = (
    mail('1', 'good', 'later'),
    mail('2', 'bad'),
    mail('3', 'good', 'bad', 'later'),
    mail('4', 'good'),
    mail('5', 'good'),
    mail('6', 'good', 'bad'),
    mail('7', 'good'),
    mail('8', 'good', 'good'),
    mail('9', 'good'),
)


# Changes that a person makes


def _only_mail(queue: MaildirQueue) -> MailInfo:
    (info,) = queue.mails()
    return info


def _held(place: Place) -> None:
    _queued(place)
    queue = place.queue()
    assert queue.hold(_only_mail(queue), 'ask first')
    place.forget()


def _tried(place: Place) -> None:
    """The relay has answered for each recipient, and the events were handled."""
    _queued(place)
    claim = _claimed(place)
    place.recorder().record_outcome(claim, _leave(place, claim), Relay.name)
    place.forget()


def _hold(place: Place) -> Steps:
    queue = place.queue()
    info = _only_mail(queue)
    yield 'hold'
    queue.hold(info, 'ask first')


def _release(place: Place) -> Steps:
    queue = place.queue()
    info = _only_mail(queue)
    yield 'release held'
    queue.release(info)


def _retry(place: Place) -> Steps:
    queue = place.queue()
    info = _only_mail(queue)
    place.ledger.mark('retried', info.id)
    yield 'retry'
    queue.retry(info)


def _drop(place: Place) -> Steps:
    queue = place.queue()
    info = _only_mail(queue)
    place.ledger.mark('dropped', info.id)
    yield 'drop'
    queue.drop(info)


def _completed(place: Place) -> None:
    """A retry of what is left in failed/ has it sent: each recipient has the mail once."""
    queue = place.queue()
    for info in queue.mails():
        details = queue.get(info.id)
        assert details is not None
        if not details.damaged:
            assert queue.retry(info)
    damaged = any(queue.mails('failed'))
    place.drain()
    copies = place.ledger.copies()
    for envelope in place.mails:
        assert damaged or {copies[envelope.id, to] for to in envelope.recipients} == {1}


def _released(place: Place) -> None:
    """No history outlives its mail, and a mail that was held for long is not given up."""
    _completed(place)
    if not list(place.path.glob('failed/*')):
        assert list(place.path.glob('reasons/*')) == []


def _dropped(place: Place) -> None:
    """The same drop completes it."""
    queue = place.queue()
    for info in queue.mails():
        assert queue.drop(info)
    assert list(queue.mails()) == []


# Files that are not mail


FOREIGN = f'5-{1_700_000_000_000:015d}-0000-{"f" * 32}'


def _damaged(place: Place) -> None:
    _queued(place)
    (place.path / 'new' / FOREIGN).write_bytes(b'X-Envelope: not any more')


def _move_damaged(place: Place) -> Steps:
    queue = place.queue()
    tickets, _ = queue.scan(place.clock.now)
    yield 'claim'
    for ticket in tickets:
        try:
            claim = queue.claim(ticket)
        except DamagedMail as error:
            place.ledger.mark('damaged', error.name)
        else:
            if claim is not None:
                claim.release()


def _is_in_failed(place: Place) -> None:
    assert (place.path / 'failed' / FOREIGN).read_bytes() == b'X-Envelope: not any more'


def _ancestors(place: Place) -> None:
    (place.path / 'new' / '1700000000.42.host').write_bytes(
        b'X-Zope-From: shop@example.org\nX-Zope-To: good0@example.org\nSubject: Hello\n\nHello.\n'
    )


def _adopt(place: Place) -> Steps:
    queue = place.queue()
    (ticket,), _ = queue.scan(place.clock.now)
    yield 'claim'
    claim = queue.claim(ticket)
    if claim is not None:
        claim.release()


def _sent_once(place: Place) -> None:
    """The mail was sent once, or may not be opened and is in failed/."""
    in_failed = list((place.path / 'failed').iterdir())
    assert len(place.ledger.lines('accepted')) + len(in_failed) == 1


# The queue itself


def _prepare(place: Place) -> Steps:
    queue = place.queue()
    yield 'prepare'
    queue.prepare()


def _check(place: Place) -> Steps:
    queue = place.queue()
    yield 'check_writable'
    queue.check_writable()


def _sync(place: Place) -> Steps:
    queue = place.queue()
    yield 'sync'
    queue.sync()


def _wake(place: Place) -> Steps:
    queue, other = place.queue(), place.queue()
    queue.prepare()
    yield 'pull'
    other._wake_up.notify()
    yield 'wait'
    queue.wait(0)


def _usable(place: Place) -> None:
    """The queue accepts mail and gives it out."""
    place.queue().put([mail('e', 'good')]).publish()
    place.drain()
    assert place.ledger.copies()['e' * 32, 'good0@example.org'] == 1


BOTH = ({'sync': True}, {'sync': False})
EACH = (
    {'kinds': SUBSCRIBED},
    {'kinds': (), 'sync': False},
    {'kinds': SUBSCRIBED, 'sync': False, 'ambiguous': 'hold'},
    {'kinds': (), 'ambiguous': 'hold'},
)
DOUBTS = tuple(
    {'in_doubt': in_doubt, 'sync': sync, 'kinds': kinds}
    for in_doubt in ('hold', 'send')
    for sync, kinds in ((True, SUBSCRIBED), (False, ()))
)

OPERATIONS = (
    Operation('enqueue one', _enqueue, ONE, variants=DOUBTS),
    Operation('enqueue three', _enqueue, THREE, variants=DOUBTS),
    Operation('discard one', _discard, ONE, variants=DOUBTS),
    Operation('discard three', _discard, THREE, variants=DOUBTS),
    Operation('keep_in_doubt', _doubt, THREE, variants=DOUBTS),
    Operation('recover unvoted', _scan, THREE, lay=_left('W'), variants=DOUBTS),
    Operation('recover doubtful', _scan, THREE, lay=_left('V'), variants=DOUBTS),
    Operation('recover committed', _scan, THREE, lay=_left('C'), variants=DOUBTS),
    Operation('claim and release', _claim, ONE, lay=_queued),
    Operation('mark_ambiguous', _mark_ambiguous, ONE, lay=_queued, variants=EACH),
    Operation(
        'settle delivered', _settle, (mail('a', 'good', 'good'),), lay=_queued, variants=EACH
    ),
    Operation('settle partly', _settle, (mail('a', 'good', 'later'),), lay=_queued, variants=EACH),
    Operation('settle deferred', _settle, (mail('a', 'later'),), lay=_queued, variants=EACH),
    Operation('settle failed', _settle, (mail('a', 'bad'),), lay=_queued, variants=EACH),
    Operation(
        'settle mixed', _settle, (mail('a', 'good', 'bad', 'later'),), lay=_queued, variants=EACH
    ),
    Operation(
        'retry_events',
        _retry_events,
        (mail('a', 'good', 'bad'),),
        lay=_queued,
        variants=({'kinds': SUBSCRIBED}, {'kinds': SUBSCRIBED, 'sync': False}),
    ),
    Operation(
        'report', _attempt, (mail('a', 'good', 'bad'),), lay=_sent_and_stopped, variants=EACH
    ),
    Operation('resume before the dot', _attempt, ONE, lay=_stopped(ambiguous=False), variants=EACH),
    Operation('resume after the dot', _attempt, ONE, lay=_stopped(ambiguous=True), variants=EACH),
    Operation(
        'retry by hand',
        _attempt,
        (mail('a', 'good', 'mended'),),
        lay=_failed_and_moved,
        variants=EACH,
    ),
    Operation('attempt', _attempt, THREE, lay=_queued, variants=EACH),
    Operation('run once', _process, ALL_SORTS, lay=_all_sorts, variants=EACH),
    Operation('hold', _hold, ONE, lay=_queued, check=_completed),
    Operation('release', _release, OLD, lay=_held, check=_released),
    Operation('release and defer', _release, OLD_LATER, lay=_held, check=_released),
    Operation(
        'retry failed',
        _retry,
        (mail('a', 'good', 'mended'),),
        lay=_tried,
        check=_completed,
        variants=EACH,
    ),
    Operation(
        'retry deferred',
        _retry,
        (mail('a', 'good', 'later'),),
        lay=_tried,
        check=_completed,
        variants=EACH,
    ),
    Operation('drop', _drop, (mail('a', 'good', 'bad'),), lay=_tried, check=_dropped),
    Operation('set aside', _move_damaged, ONE, lay=_damaged, check=_is_in_failed),
    Operation('adopt', _adopt, lay=_ancestors, check=_sent_once),
    Operation('prepare', _prepare, check=_usable, bare=True),
    Operation('check_writable', _check, check=_usable),
    Operation('sync', _sync, check=_usable),
    Operation('wake', _wake, check=_usable),
)
