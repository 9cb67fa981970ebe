"""Mistakes that a user can mend: one line that names the flag and the fix, exit code 2."""

import os
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake in the flags, the data or a reward."""


class Stopped(Exception):
    """A run that was asked to stop by a signal, and is saved; exit code 128 + signal."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


def require(condition: bool, message: str) -> None:
    """Raise UserError(message) unless the condition holds."""
    if not condition:
        raise UserError(message)


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def told_as(what: str, then: str = "") -> Generator[None]:
    """Turn whatever a library or the disk objects to into a UserError: what failed, the cause in
    brackets, what to do. A UserError stays as it is. Also a decorator."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each library has its own
        raise UserError(f"{what} ({first_line(error)}){then}") from error


@contextmanager
def plain_errors() -> Generator[None]:
    """Turn a `UserError` into its one line on stderr and exit code 2, and what stops a program into
    the shell's codes. Other exceptions keep their traceback: they are our bugs. Of several ranks,
    which all end so, the first one speaks."""
    told, code = "", 0
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a letter must not end a run
        stream.reconfigure(errors="backslashreplace")  # ty: ignore
    try:
        yield
    except UserError as error:
        told, code = f"error: {error}", 2
    except Stopped as stop:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is saved: one more has nothing to stop
        told, code = f"\n{stop}", 128 + stop.number
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        told, code = "\nstopped by Ctrl-C", 130
    if told and os.environ.get("RANK", "0") == "0":
        print(told, file=sys.stderr)
    if code:
        sys.exit(code)
