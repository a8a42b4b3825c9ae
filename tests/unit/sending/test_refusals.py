"""A relay that refuses every mail in the same words: what counts as that, and what does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyramid_sendmail.envelope import Reply, Verdict
from pyramid_sendmail.exceptions import MailerUnavailable
from pyramid_sendmail.queue import MemoryQueue
from pyramid_sendmail.sending.refusals import IN_A_ROW, Refusals
from tests.support.processors import ProcessorSetup, RecordingDispatcher, log_levels
from tests.support.queues import until
from tests.support.sessions import make_mailer
from tests.support.smtp.server import ScriptedSMTPServer, reply

DENIED = '5.7.1 <{}>: Relay access denied'


def refused(text: str, *recipients: str, code: int = 554) -> dict[str, Verdict]:
    recipients = recipients or ('ann@example.org',)
    return {each: Verdict('failed', Reply(code, text.format(each))) for each in recipients}


VERDICT = Verdict('delivered', Reply(250, 'ok'))

DELIVERED = {'ann@example.org': VERDICT}

DEFERRED = {'ann@example.org': Verdict('deferred', Reply(450, 'later'))}


def statuses(refusals: Refusals, *outcomes: dict[str, Verdict]) -> list[str]:
    found = []
    for outcome in outcomes:
        judged, error = refusals.judge(outcome)
        kinds = {verdict.status for verdict in judged.values()}
        found.append('/'.join(sorted(kinds)) + '!' * (error is not None))
    return found


@pytest.mark.parametrize(
    ('text', 'code'),
    [
        (DENIED, 554),
        ('5.4.5 Daily user sending limit exceeded, id {}', 550),
        ('5.7.64 TenantAttribution; Relay Access Denied [AM5.example.com {}]', 550),
        ('5.7.1 Service unavailable, client host [192.0.2.1] blocked using x.example.net', 554),
        ('5.1.8 <{}>: sender address rejected: domain not found', 550),
        ('Transaction failed {}', 554),
        ('5.4.5 limit of 500 mails, and this is the {}', 550),
        ('no', 552),
    ],
)
def test_the_same_words(text: str, code: int) -> None:
    """From the fifth mail in a row on it is not the mail's fault: it is deferred, with the words
    and what to do. Addresses and numbers may differ."""
    refusals = Refusals('smtp://relay.example.org:25')
    outcomes = [refused(text, f'user{number}@example.org', code=code) for number in range(4)]
    outcomes += [refused(text, str(number), code=code) for number in range(501, 505)]
    first = ['failed'] * (IN_A_ROW - 1)
    assert statuses(refusals, *outcomes) == first + ['deferred!'] * (9 - IN_A_ROW)
    judged, error = refusals.judge(refused(text, 'a@x', 'b@x', code=code))
    assert {verdict.status for verdict in judged.values()} == {'deferred'}
    assert error is not None
    for shown in (str(error), str(judged['a@x'])):
        assert f'{code} ' in shown
        assert 'mend the account, mail.url' in shown


@pytest.mark.parametrize(
    ('text', 'code'),
    [
        ('5.1.1 <{}>: Recipient address rejected: User unknown', 550),
        ('5.1.10 RESOLVER.ADR.RecipientNotFound', 550),
        ('5.2.1 mailbox disabled', 550),
        ('5.2.2 over quota', 552),
        ('No such user here', 550),
        ('{} user unknown', 550),
        ('Requested action not taken: mailbox unavailable', 550),
        ('unknown recipient', 553),
    ],
)
def test_words_about_a_recipient(text: str, code: int) -> None:
    """A list of old addresses is no fault of the relay's."""
    refusals = Refusals('relay')
    outcomes = [refused(text, f'user{number}@example.org', code=code) for number in range(40)]
    assert set(statuses(refusals, *outcomes)) == {'failed'}


@pytest.mark.parametrize(
    'other',
    [
        DELIVERED,
        DEFERRED,
        refused('5.6.0 this mail is broken'),
        refused(DENIED, code=550),
        refused('5.7.2' + DENIED[5:]),
        refused('5.1.1 who?'),
        DELIVERED | refused(DENIED, 'bob@example.org'),
        refused(DENIED) | refused('5.7.1 spam', 'bob@example.org'),
        {'ann@example.org': Verdict('failed', None, 'too large (SIZE)')},
    ],
)
def test_any_other_outcome_ends_the_row(other: dict[str, Verdict]) -> None:
    """Another word, code or result, for any recipient; before the fifth and after it."""
    refusals = Refusals('relay')
    four = [refused(DENIED)] * (IN_A_ROW - 1)
    assert 'deferred!' not in statuses(refusals, *four, other, *four)
    [result] = statuses(refusals, refused(DENIED))
    assert result == 'deferred!'
    assert '!' not in ''.join(statuses(refusals, other, *four))


# In a queue processor


Relay = tuple[ProcessorSetup, Callable[[bool], None]]


@pytest.fixture(params=['loop', 'threads'])
def relay(request: pytest.FixtureRequest, smtp_server: ScriptedSMTPServer) -> Relay:
    """Mail in memory, and a function that has the relay refuse all or accept all."""
    setup = ProcessorSetup(MemoryQueue())
    setup.dispatcher = RecordingDispatcher('sent', 'deferred', 'error')
    text = '5.7.1 Relay access denied'
    if request.param == 'threads':
        verdict = Verdict('failed', Reply(554, text))

        def refuse(does: bool) -> None:
            setup.mailer.always('ann@example.org', verdict if does else VERDICT)

        return setup, refuse
    setup.mailer = make_mailer(smtp_server.host, smtp_server.port)  # type: ignore[assignment]
    refuses = True
    smtp_server.always('RCPT', lambda _: reply(554, text) if refuses else None)

    def have_server_refuse(does: bool) -> None:
        nonlocal refuses
        refuses = does

    return setup, have_server_refuse


def count(setup: ProcessorSetup, kind: str) -> int:
    return [each for each, _ in setup.dispatcher.dispatched()].count(kind)


def test_once(relay: Relay) -> None:
    """A run with --once ends with the error, and a handful of mails have failed."""
    setup, refuse = relay
    refuse(True)
    setup.put_many(40)
    with pytest.raises(MailerUnavailable, match=r'same words.*mail\.url.*Relay access denied'):
        setup.processor(workers=1).run_once()
    assert count(setup, 'error') == IN_A_ROW - 1
    assert count(setup, 'deferred') == 1
    assert len(setup.queue) == 36


def test_what_waits_stays_until_the_relay_accepts(
    relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    """However many connections there are. The log says it once, as CRITICAL; mail is tried one at
    a time, and deferred; and when the setting is mended, all that waits leaves."""
    setup, refuse = relay
    refuse(True)
    setup.put_many(40)
    with setup.running(workers=4, pause=0.002):
        until(lambda: count(setup, 'deferred') >= 7)
        refuse(False)
        until(lambda: count(setup, 'sent') + count(setup, 'deferred') == 41 - IN_A_ROW)
        assert count(setup, 'deferred') < 20
    assert count(setup, 'error') == IN_A_ROW - 1
    assert log_levels(caplog, 'mail stays queued').count('CRITICAL') == 1
    assert log_levels(caplog, 'available again') == ['WARNING']
