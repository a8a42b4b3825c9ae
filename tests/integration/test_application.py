"""Mail from a real Pyramid application: WSGI, pyramid_tm, pyramid_retry, scripts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import transaction
import zope.sqlalchemy
from pyramid.config import Configurator
from pyramid.events import NewResponse
from pyramid.httpexceptions import HTTPFound, HTTPInternalServerError, HTTPNotFound
from pyramid.paster import bootstrap
from pyramid.request import Request
from pyramid.response import Response
from sqlalchemy.orm import sessionmaker
from transaction.interfaces import TransientError
from webtest import TestApp

from pyramid_sendmail import Message, NoActiveTransaction
from pyramid_sendmail.config.factories import IProcessorThread
from pyramid_sendmail.events.types import MailSentEvent
from pyramid_sendmail.interfaces import (
    IMailDelivery,
    IMailEventDispatcher,
    IMailQueue,
    IMailSentEvent,
)
from pyramid_sendmail.queue import MemoryQueue
from pyramid_sendmail.retry import AT_ONCE_OR_NEVER
from tests.support.databases import NOTES, notes
from tests.support.doubles import RecordingMailer
from tests.support.queues import until
from tests.support.smtp.server import ScriptedSMTPServer, delay

WAIT = 10.0

EXPLICIT = 'pyramid_tm.explicit_manager'

View = Callable[[Any], Any]


def message(subject: str) -> Message:
    return Message(subject=subject, to='ann@example.org', text='Hi', sender='shop@example.org')


def send(request: Any, subject: str = 'Hello') -> str:
    return str(request.mailer.send(message(subject)))


class Site:
    """An application whose mail is queued in memory, and its web client.

    The view at / is given; ``configure`` adds the rest.
    """

    def __init__(
        self,
        view: View,
        *,
        hook: str | None = EXPLICIT,
        configure: Callable[[Configurator], object] = lambda config: None,
        queue: bool = True,
        **settings: str,
    ) -> None:
        given = {name.replace('__', '.'): value for name, value in settings.items()}
        if hook:
            given['tm.manager_hook'] = hook
        self.queue = MemoryQueue()
        self.mailer = RecordingMailer()
        config = Configurator(settings={'mail.url': 'null:', **given})
        config.include('pyramid_sendmail')
        if queue:
            config.set_mail_queue(self.queue)
        if 'mail.url' not in given:
            config.set_mailer(self.mailer)
        config.add_route('view', '/')
        config.add_view(view, route_name='view')
        configure(config)
        self.wsgi = config.make_wsgi_app()
        self.registry = config.registry
        self.web = TestApp(self.wsgi)

    def get(self, path: str = '/', **options: Any) -> Any:
        return self.web.get(path, status='*', **options)

    @property
    def queued(self) -> list[str]:
        return subjects(self.queue)


def subjects(queue: Any) -> list[str]:
    """Return the subjects of all mail in a queue."""
    tickets, _ = queue.scan(1e11)
    claims = [queue.claim(ticket) for ticket in tickets]
    found = [claim.envelope.subject for claim in claims]
    for claim in claims:
        claim.release()
    return sorted(found)


@pytest.fixture(params=[EXPLICIT, None], ids=['explicit', 'thread-local'])
def hook(request: pytest.FixtureRequest) -> Iterator[str | None]:
    yield request.param
    transaction.abort()


# Requests


def test_a_view_sends(hook: str | None) -> None:
    """Mail that a view sends is queued by its request's commit; its id comes back at once."""
    seen: list[Any] = []

    def view(request: Any) -> Response:
        message_id = send(request)
        seen.append((message_id, site.queued, request.mailer is request.mailer))
        return Response(message_id)

    site = Site(view, hook=hook)
    response = site.get()
    assert seen == [(response.text, [], True)]
    assert site.queued == ['Hello']


def test_a_view_that_raises_sends_nothing(hook: str | None) -> None:
    """The exception is raised, and no mail is sent."""

    def view(request: Any) -> Response:
        send(request)
        raise ZeroDivisionError

    site = Site(view, hook=hook)
    with pytest.raises(ZeroDivisionError):
        site.get()
    assert site.queued == []


def test_a_doomed_request_sends_nothing(hook: str | None) -> None:
    """A doomed transaction takes the mail, and the response is as usual; no mail is sent."""

    def view(request: Any) -> Response:
        send(request, 'before')
        request.tm.doom()
        return Response(send(request, 'after'))

    site = Site(view, hook=hook)
    assert site.get().text.startswith('<')
    assert site.queued == []


def test_a_full_queue_fails_the_request(tmp_path: Path, hook: str | None) -> None:
    """A queue that cannot be written fails the commit, which is not tried again."""
    attempts: list[int] = []

    def view(request: Any) -> Response:
        attempts.append(1)
        return Response(send(request))

    site = Site(
        view, hook=hook, queue=False, mail__queue_path=str(tmp_path / 'queue'), configure=with_retry
    )
    (tmp_path / 'queue').write_text('a file, where a folder should be')
    with pytest.raises(OSError, match='queue'):
        site.get()
    assert attempts == [1]


# pyramid_retry


def with_retry(config: Configurator) -> None:
    config.add_settings({'retry.attempts': 3})
    config.include('pyramid_retry')


def conflicting(where: str) -> tuple[View, list[int]]:
    """Return a view that conflicts on its first two attempts, and the list of attempts."""
    attempts: list[int] = []

    class Conflict:
        def sortKey(self) -> str:
            return '~z' if where == 'vote after ours' else 'a'

        def tpc_vote(self, transaction: Any) -> None:
            raise TransientError

        def nothing(self, transaction: Any) -> None:
            pass

        tpc_begin = commit = tpc_finish = tpc_abort = abort = nothing

    def view(request: Any) -> Response:
        attempts.append(1)
        send(request, f'attempt {len(attempts)}')
        if len(attempts) < 3:
            if where == 'view':
                raise TransientError
            request.tm.get().join(Conflict())
        return Response('done')

    return view, attempts


@pytest.mark.parametrize('where', ['view', 'vote before ours', 'vote after ours'])
def test_a_conflict_on_two_attempts_sends_one_mail(hook: str | None, where: str) -> None:
    """However often pyramid_retry runs the request again, one mail is sent: that of the last
    attempt."""
    view, attempts = conflicting(where)
    site = Site(view, hook=hook, configure=with_retry)
    assert site.get().text == 'done'
    assert len(attempts) == 3
    assert site.queued == ['attempt 3']


def test_a_conflict_on_the_last_attempt_sends_none(hook: str | None) -> None:
    """If all attempts fail, no mail is sent."""

    def view(request: Any) -> Response:
        send(request)
        raise TransientError

    site = Site(view, hook=hook, configure=with_retry)
    with pytest.raises(TransientError):
        site.get()
    assert site.queued == []


def test_a_subscriber_causes_no_second_attempt(hook: str | None) -> None:
    """The exception of a subscriber, retryable or not, does not run the request again."""
    attempts: list[int] = []
    handled: list[str] = []

    def view(request: Any) -> Response:
        attempts.append(1)
        return Response(send(request))

    def subscriber(event: Any) -> None:
        handled.append(event.message_id)
        raise TransientError

    def configure(config: Configurator) -> None:
        with_retry(config)
        config.add_subscriber(subscriber, IMailSentEvent)

    site = Site(view, hook=hook, configure=configure, queue=False)
    site.registry.getUtility(IMailEventDispatcher)._policy = AT_ONCE_OR_NEVER
    message_id = site.get().text
    finish(site)
    assert (attempts, handled) == ([1], [message_id])
    assert len(site.mailer.sent) == 1


def test_a_squashed_conflict_with_a_veto_sends_each_time() -> None:
    """Pinned, and in the README: if an exception view turns a conflict into a redirect, and there
    is a commit veto, pyramid_tm commits each attempt and pyramid_retry runs the request again."""

    def view(request: Any) -> Response:
        send(request)
        raise TransientError

    def configure(config: Configurator) -> None:
        with_retry(config)
        config.add_exception_view(lambda error, request: HTTPFound('/'), context=TransientError)

    assert_sends(view, configure, veto=False, mails=0)
    assert_sends(view, configure, veto=True, mails=3)


@pytest.mark.parametrize('where', ['response callback', 'NewResponse', 'outer tween'])
def test_a_conflict_after_the_commit_sends_each_time(where: str) -> None:
    """Pinned, and in the README: after a conflict behind pyramid_tm's commit, pyramid_retry runs
    the request again, and each attempt is a commit of its own, with its row and its mail."""
    attempts: list[int] = []

    def conflict(*_: object) -> None:
        attempts.append(1)
        if len(attempts) < 3:
            raise TransientError

    def view(request: Any) -> Response:
        send(request)
        if where == 'response callback':
            request.add_response_callback(conflict)
        return Response('done')

    def configure(config: Configurator) -> None:
        with_retry(config)
        if where == 'NewResponse':
            config.add_subscriber(conflict, NewResponse)
        elif where == 'outer tween':
            config.add_tween(f'{__name__}.outer', over='pyramid_tm.tm_tween_factory')
            config.registry.conflict = conflict

    site = Site(view, configure=configure)
    assert site.get().text == 'done'
    assert len(site.queued) == 3


def outer(handler: Callable[[Any], Response], registry: Any) -> Callable[[Any], Response]:
    """A tween over pyramid_tm, which conflicts."""

    def tween(request: Any) -> Response:
        response = handler(request)
        registry.conflict()
        return response

    return tween


def assert_sends(
    view: View, configure: Callable[[Configurator], object], *, veto: bool, mails: int
) -> None:
    settings = {'tm__commit_veto': 'pyramid_tm.default_commit_veto'} if veto else {}
    site = Site(view, configure=configure, **settings)
    site.get()
    assert len(site.queued) == mails


# Commit or not


def answers(request: Any) -> Any:
    kind = request.params['kind']
    if kind == '500 returned':
        return HTTPInternalServerError()
    if kind == '404 returned':
        return HTTPNotFound()
    if kind == '404 raised':
        raise HTTPNotFound
    if kind == '302 returned':
        return HTTPFound('/')
    if kind == '302 raised':
        raise HTTPFound('/')
    response = Response('ok')
    if kind == 'X-Tm: commit':
        response.status_int = 500
        response.headers['X-Tm'] = 'commit'
    elif kind == 'X-Tm: abort':
        response.headers['X-Tm'] = 'abort'
    return response


COMMITS = {
    # what the view did: (without a veto, with pyramid_tm.default_commit_veto)
    '200': (True, True),
    '500 returned': (True, False),
    '404 returned': (True, False),
    '404 raised': (False, False),
    '302 returned': (True, True),
    '302 raised': (False, True),
    'X-Tm: commit': (True, True),
    'X-Tm: abort': (True, False),
}


@pytest.mark.parametrize('veto', [False, True], ids=['no veto', 'veto'])
@pytest.mark.parametrize('kind', COMMITS)
def test_mail_leaves_if_and_only_if_the_row_is_committed(
    hook: str | None, kind: str, veto: bool, sqlite: sqlalchemy.Engine
) -> None:
    """Mail is sent if and only if the row is committed, whatever the view answers: see COMMITS."""
    factory = sessionmaker(sqlite)

    def view(request: Any) -> Any:
        session = factory()
        zope.sqlalchemy.register(session, transaction_manager=request.tm)
        session.execute(NOTES.insert().values(text='Hello'))
        zope.sqlalchemy.mark_changed(session, request.tm)
        send(request)
        return answers(request)

    settings = {'tm__commit_veto': 'pyramid_tm.default_commit_veto'} if veto else {}
    site = Site(view, hook=hook, **settings)
    site.get(params={'kind': kind})
    assert site.queued == notes(sqlite) == (['Hello'] if COMMITS[kind][veto] else [])


@pytest.mark.parametrize('where', ['view', 'commit'])
def test_an_exception_view_sends_now(hook: str | None, where: str) -> None:
    """An exception view runs in the transaction that is aborted: mail of ``send`` is aborted with
    it, or ``send`` raises if the commit itself failed; ``send_now`` works."""
    seen: list[str] = []

    def view(request: Any) -> Response:
        send(request, 'of the view')
        if where == 'commit':
            request.tm.get().addBeforeCommitHook(lambda: 1 / 0)
        else:
            raise ZeroDivisionError
        return Response('never seen')

    def sorry(error: Exception, request: Any) -> Response:
        try:
            send(request, 'of the exception view')
        except NoActiveTransaction as late:
            seen.append(str(late))
        request.mailer.send_now(message('now'))
        return Response('sorry', status=500)

    site = Site(
        view,
        hook=hook,
        configure=lambda config: config.add_exception_view(sorry, context=ZeroDivisionError),
    )
    assert site.get().text == 'sorry'
    assert site.queued == []
    assert [envelope.subject for envelope in site.mailer.sent] == ['now']
    # A before-commit hook fails before the transaction knows of it.
    assert seen == []


def test_an_exception_view_after_a_failed_vote(hook: str | None) -> None:
    """After a failed commit there is no transaction: ``send`` raises, and ``send_now`` works."""
    seen: list[str] = []
    view, _ = conflicting('vote before ours')

    def sorry(error: Exception, request: Any) -> Response:
        with pytest.raises(NoActiveTransaction, match=r'send_now\(\)') as caught:
            send(request, 'late')
        seen.append(str(caught.value))
        request.mailer.send_now(message('now'))
        return Response('sorry', status=500)

    site = Site(
        view,
        hook=hook,
        configure=lambda config: config.add_exception_view(sorry, context=TransientError),
    )
    assert site.get().text == 'sorry'
    assert len(seen) == 1
    assert site.queued == []
    assert [envelope.subject for envelope in site.mailer.sent] == ['now']


# No transaction


def never(request: Any) -> bool:
    return False


def test_without_an_active_pyramid_tm(hook: str | None) -> None:
    """If ``tm.activate_hook`` returns False, there is no transaction: ``send`` raises, names
    ``send_now``, and leaves no transaction in the thread."""

    def view(request: Any) -> Response:
        with pytest.raises(NoActiveTransaction, match=r'send_now\(\)') as caught:
            send(request)
        request.mailer.send_now(message('now'))
        return Response(str(caught.value))

    site = Site(view, hook=hook, tm__activate_hook=f'{__name__}.never')
    assert 'no active transaction' in site.get().text
    transaction.commit()
    assert site.queued == []
    assert len(site.mailer.sent) == 1


def test_without_an_active_pyramid_tm_one_can_begin(hook: str | None) -> None:
    """``with request.tm:`` is a transaction like any other."""

    def view(request: Any) -> Response:
        with request.tm:
            return Response(send(request))

    site = Site(view, hook=hook, tm__activate_hook=f'{__name__}.never')
    site.get()
    assert site.queued == ['Hello']


def test_after_a_commit_in_the_view() -> None:
    """With an explicit manager, a view that has committed has to begin again."""

    def view(request: Any) -> Response:
        send(request, 'first')
        request.tm.commit()
        with pytest.raises(NoActiveTransaction):
            send(request, 'between')
        request.tm.begin()
        send(request, 'second')
        return Response('ok')

    site = Site(view)
    site.get()
    assert site.queued == ['first', 'second']


LATE = ['app_iter', 'finished callback', 'response callback', 'NewResponse', 'after-commit hook']


@pytest.mark.parametrize('where', LATE)
def test_after_the_transaction_send_raises(hook: str | None, where: str) -> None:
    """In code that runs after the request's transaction ``send`` raises: its mail would be lost."""
    seen: list[str] = []

    def late(request: Any) -> None:
        with pytest.raises(NoActiveTransaction, match=r'send_now\(\)') as caught:
            send(request, 'late')
        seen.append(str(caught.value))

    def view(request: Any) -> Response:
        send(request, 'early')
        response = Response('ok')
        if where == 'app_iter':
            response.app_iter = streaming(request)
        elif where == 'finished callback':
            request.add_finished_callback(late)
        elif where == 'response callback':
            request.add_response_callback(lambda request, response: late(request))
        elif where == 'after-commit hook':
            request.tm.get().addAfterCommitHook(lambda committed: late(request))
        return response

    def streaming(request: Any) -> Iterator[bytes]:
        late(request)
        yield b'streamed'

    def configure(config: Configurator) -> None:
        if where == 'NewResponse':
            config.add_subscriber(lambda event: late(event.request), NewResponse)

    site = Site(view, hook=hook, configure=configure)
    site.get()
    assert len(seen) == 1
    assert site.queued == ['early']


def test_the_utility_does_not_take_the_threads_transaction_for_the_requests() -> None:
    """If requests have managers of their own, ``send`` of the utility has no transaction and
    raises; the next commit of the thread sends nothing."""

    def view(request: Any) -> Response:
        with pytest.raises(NoActiveTransaction):
            request.registry.getUtility(IMailDelivery).send(message('lost'))
        return Response('ok')

    site = Site(view)
    site.get()
    transaction.commit()
    assert site.queued == []


# Sub-requests


@pytest.mark.parametrize('tweens', [False, True])
def test_a_sub_request_with_a_manager_of_its_own(tweens: bool) -> None:
    """Pinned: with explicit managers a sub-request has a transaction of its own if pyramid_tm runs
    for it, whose mail is sent although the outer one aborts; without tweens it has none."""

    def inner(request: Any) -> Response:
        if tweens:
            return Response(send(request, 'inner'))
        with pytest.raises(NoActiveTransaction):
            send(request, 'inner')
        return Response('none')

    def view(request: Any) -> Response:
        send(request, 'outer')
        request.invoke_subrequest(Request.blank('/inner'), use_tweens=tweens)
        request.tm.doom()
        return Response('ok')

    site = Site(view, configure=with_inner(inner))
    assert site.get().text == 'ok'
    assert site.queued == (['inner'] if tweens else [])


@pytest.mark.parametrize('tweens', [False, True])
def test_a_sub_request_with_the_threads_manager(tweens: bool) -> None:
    """Pinned: with the thread-local manager a sub-request without tweens is part of the outer
    transaction; with tweens, pyramid_tm begins anew and thereby aborts what the outer one did."""

    def inner(request: Any) -> Response:
        return Response(send(request, 'inner'))

    def view(request: Any) -> Response:
        send(request, 'before')
        request.invoke_subrequest(Request.blank('/inner'), use_tweens=tweens)
        send(request, 'after')
        return Response('ok')

    site = Site(view, hook=None, configure=with_inner(inner))
    site.get()
    assert site.queued == (['after', 'inner'] if tweens else ['after', 'before', 'inner'])


def with_inner(inner: View) -> Callable[[Configurator], None]:
    def configure(config: Configurator) -> None:
        config.add_route('inner', '/inner')
        config.add_view(inner, route_name='inner')

    return configure


# Scripts

SITES: list[Site] = []


def main(global_config: Any, **settings: str) -> Any:
    """Return the application that the ini file names."""
    hook = settings.pop('tm.manager_hook', None)
    site = Site(lambda request: Response(send(request)), hook=hook, queue=False, **settings)
    SITES.append(site)
    return site.wsgi


@pytest.fixture
def ini(tmp_path: Path, hook: str | None) -> Iterator[Callable[..., str]]:
    """Write an ini file with these settings; return its path."""

    def write(**settings: str) -> str:
        if hook:
            settings['tm.manager_hook'] = hook
        path = tmp_path / 'site.ini'
        lines = [f'{name.replace("__", ".")} = {value}\n' for name, value in settings.items()]
        path.write_text(f'[app:main]\nuse = call:{__name__}:main\n{"".join(lines)}')
        return str(path)

    SITES.clear()
    yield write
    SITES.clear()


def maildir(site: Site) -> list[str]:
    return subjects(site.registry.getUtility(IMailQueue))


def test_a_script_sends(ini: Callable[..., str], tmp_path: Path) -> None:
    """Under ``pyramid.paster.bootstrap``, ``with request.tm:`` takes the place of pyramid_tm;
    outside of it ``send`` raises, and ``send_now`` works."""
    with bootstrap(ini(mail__queue_path=str(tmp_path / 'queue'))) as env:
        request = env['request']
        with pytest.raises(NoActiveTransaction, match=r'with request\.tm:'):
            send(request)
        with request.tm:
            send(request, 'committed')
        request.tm.begin()
        send(request, 'aborted')
        request.tm.abort()
        request.mailer.send_now(message('now'))
        assert maildir(SITES[0]) == ['committed']
        assert [envelope.subject for envelope in SITES[0].mailer.sent] == ['now']


def test_a_script_without_a_request_sends(ini: Callable[..., str], tmp_path: Path) -> None:
    """Code without a request sends through the utility, with the thread-local manager or one of its
    own."""
    with bootstrap(ini(mail__queue_path=str(tmp_path / 'queue'))) as env:
        delivery = env['registry'].getUtility(IMailDelivery)
        with pytest.raises(NoActiveTransaction, match='send_now'):
            delivery.send(message('lost'))
        with transaction.manager:
            delivery.send(message('thread-local'))
        tm = transaction.TransactionManager(explicit=True)
        with tm:
            delivery.bind(tm).send(message('of its own'))
        assert maildir(SITES[0]) == ['of its own', 'thread-local']


def test_a_script_starts_no_processor(ini: Callable[..., str], tmp_path: Path) -> None:
    """``mail.processor = thread`` starts a thread only in processes that serve requests."""
    path = ini(mail__queue_path=str(tmp_path / 'queue'), mail__processor='thread')
    before = set(threading.enumerate())
    with bootstrap(path) as env:
        with env['request'].tm:
            send(env['request'])
        assert set(threading.enumerate()) <= before
        assert maildir(SITES[0]) == ['Hello']


# End to end


def finish(site: Site) -> None:
    site.registry.getUtility(IMailDelivery).flush(WAIT)


def test_direct_delivery_from_end_to_end(
    hook: str | None, smtp_server: ScriptedSMTPServer, sqlite: sqlalchemy.Engine
) -> None:
    """The response comes when the relay has answered; a subscriber then writes a row."""
    factory = sessionmaker(sqlite)

    def subscriber(event: Any) -> None:
        session = factory()
        zope.sqlalchemy.register(session, transaction_manager=event.request.tm)
        session.execute(NOTES.insert().values(text=f'{event.message_id} {event.reply.code}'))
        zope.sqlalchemy.mark_changed(session, event.request.tm)

    smtp_server.always('dot', delay(0.05))
    site = Site(
        lambda request: Response(send(request)),
        hook=hook,
        queue=False,
        configure=lambda config: config.add_subscriber(subscriber, MailSentEvent),
        mail__url=smtp_server.url,
    )
    ids = [site.get().text for _ in range(2)]
    assert [received.message_id for received in smtp_server.messages] == ids
    assert all(received.reply_code == 250 for received in smtp_server.messages)
    assert smtp_server.connections == 1
    finish(site)
    assert notes(sqlite) == [f'{message_id} 250' for message_id in ids]


def test_direct_delivery_without_waiting_from_end_to_end(smtp_server: ScriptedSMTPServer) -> None:
    """With ``mail.direct_wait = false`` a slow relay does not delay the request."""
    smtp_server.always('dot', delay(0.5))
    site = Site(
        lambda request: Response(send(request)),
        queue=False,
        mail__url=smtp_server.url,
        mail__direct_wait='false',
    )
    site.get()
    assert not any(received.reply_code for received in smtp_server.messages)
    smtp_server.wait_for(1)
    finish(site)
    assert smtp_server.violations == []


def test_the_thread_from_end_to_end(
    hook: str | None, smtp_server: ScriptedSMTPServer, tmp_path: Path
) -> None:
    """``mail.processor = thread``: started by the first request, the thread drains the queue over
    one connection while requests come, and subscribers run in a transaction of their own."""
    handled: list[str] = []

    def subscriber(event: Any) -> None:
        assert event.request.tm.get() is not None
        handled.append(event.message_id)

    def running() -> bool:
        return any(each.name == 'pyramid_sendmail queue' for each in threading.enumerate())

    site = Site(
        lambda request: Response(send(request)),
        hook=hook,
        queue=False,
        configure=lambda config: config.add_subscriber(subscriber, IMailSentEvent),
        mail__url=smtp_server.url,
        mail__queue_path=str(tmp_path / 'queue'),
        mail__processor='thread',
        mail__workers='1',
    )
    assert not running()
    ids = [site.get().text for _ in range(3)]
    assert running()
    until(lambda: len(handled) == 3)
    assert sorted(handled) == sorted(ids)
    assert smtp_server.connections == 1
    queue = site.registry.getUtility(IMailQueue)
    until(lambda: queue.scan(1e11) == ([], None))
    start = time.monotonic()
    site.registry.getUtility(IProcessorThread).finish(WAIT)
    assert not running()
    assert time.monotonic() - start < WAIT / 2
    smtp_server.wait_for(lambda server: not server.open_connections)
    assert smtp_server.verbs()[-1] == 'QUIT'
