"""Errors that a user can mend, raised by all three packages."""

from __future__ import annotations


class UserError(Exception):
    """A mistake of the caller's, told in one line: what was got, what is accepted, what to do.

    The command line prints the message without a traceback and exits with code 1.
    """
