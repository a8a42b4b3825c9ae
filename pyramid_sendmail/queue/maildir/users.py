"""Names of users and groups, for texts."""

from __future__ import annotations

import grp
import pwd

__all__ = ['group_name', 'user_name']


def user_name(number: int) -> str:
    """Return the name of a user, or the number if there is none."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def group_name(number: int) -> str:
    """Return the name of a group, or the number if there is none."""
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
