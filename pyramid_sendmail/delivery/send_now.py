"""``send_now``: send one envelope at once, over a connection of its own."""

from __future__ import annotations

import logging

from ..envelope import Envelope, Outcome, Report
from ..exceptions import MailAmbiguous, MailRefused
from ..interfaces import IMailer

__all__ = ['send_now']

log = logging.getLogger(__name__)


def send_now(envelope: Envelope, mailer: IMailer) -> Report:
    """Send an envelope and return the Report; see IMailDelivery.send_now for what is raised."""
    session = mailer.connect()
    try:
        outcome = next(iter(session.send([envelope])))
    finally:
        session.close()
    report = _report(envelope.message_id, outcome)
    _log(report)
    if report.accepted:
        return report
    ambiguous = any(verdict.status == 'ambiguous' for verdict in outcome.values())
    error = MailAmbiguous if ambiguous else MailRefused
    reasons = '; '.join(f'{to}: {verdict}' for to, verdict in outcome.items())
    raise error(f'{envelope.message_id}: no recipient was accepted: {reasons}', report)


def _report(message_id: str, outcome: Outcome) -> Report:
    accepted = tuple(to for to, verdict in outcome.items() if verdict.status == 'delivered')
    refused = {to: verdict for to, verdict in outcome.items() if verdict.status != 'delivered'}
    replies = [outcome[to].reply for to in (accepted[:1] or tuple(refused)[-1:])]
    return Report(
        message_id,
        accepted,
        {to: verdict.reply for to, verdict in refused.items()},
        replies[0] if replies else None,
    )


def _log(report: Report) -> None:
    parts = []
    if report.accepted:
        parts.append(f'accepted for {", ".join(report.accepted)}')
    if report.refused:
        parts.append(f'refused for {", ".join(report.refused)}')
    log.info('%s: send_now: %s', report.message_id, '; '.join(parts))
