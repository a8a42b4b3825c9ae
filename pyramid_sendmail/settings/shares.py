"""What each process of ``mail.processes`` gets of ``mail.workers`` and ``mail.rate``."""

from __future__ import annotations

from dataclasses import replace

from pyramid.exceptions import ConfigurationError

from .table import MailSettings

__all__ = ['share', 'share_of_settings', 'useful_processes']


def useful_processes(processes: int, rate: tuple[int, int] | None) -> int:
    """Return how many of the processes can send at least one mail a second each; at least 1.

    More of them would gain nothing. With less than one mail a second for each, all of them might
    send at the same moment, which is more than the rate allows in that second.
    """
    if rate is None:
        return processes
    mails, seconds = rate
    return min(processes, max(mails // seconds, 1))


def share(total: int, number: int, processes: int) -> int:
    """Return what the process of this number, from 1 on, gets of a total. The first processes get
    the remainder."""
    return total // processes + (number <= total % processes)


def share_of_settings(settings: MailSettings, number: int, processes: int) -> MailSettings:
    """Return the settings of one of several processes: the rates of all are ``mail.rate``
    together, the workers ``mail.workers`` and at least one each.

    Raises ConfigurationError if the process cannot send one mail a second: the file has changed
    since the others started.
    """
    rate = settings.rate
    if number > useful_processes(processes, rate):
        raise ConfigurationError(
            f'mail.rate is now too low for {processes} processes: restart psendmail-qp'
        )
    return replace(
        settings,
        workers=max(share(settings.workers, number, processes), 1),
        rate=rate and (share(rate[0], number, processes), rate[1]),
    )
