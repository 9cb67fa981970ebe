"""Mistakes a user can fix: one line that names the flag and the fix, exit code 2, no traceback."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake in the flags, the data or a reward. The message names the flag and the fix in one line."""


class Interrupted(Exception):
    """A run that was asked to stop, and is saved. The message says where and how to go on; exit code 128 + signal."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


def require(condition: bool, message: str) -> None:
    """Raise UserError(message) unless the condition holds."""
    if not condition:
        raise UserError(message)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn a `UserError` into its one line on stderr and exit code 2. Other exceptions keep their traceback: they are our bugs.

    Of several ranks, which all raise it (common/ranks.py), the first one speaks.
    """
    first = os.environ.get("RANK", "0") == "0"
    for stream in (sys.stdout, sys.stderr):  # a terminal or a log that lacks a letter must not end a run
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except UserError as error:
        if first:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as stop:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is saved: one more has nothing to stop
        if first:
            print(f"\n{stop}", file=sys.stderr)
        sys.exit(128 + stop.number)
    except BrokenPipeError:  # `| head` has seen enough; Python would complain once more when it flushes stdout at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        if first:
            print("\nstopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
