"""Ctrl-C and SIGTERM: noted when they come, acted on between steps, where policy and state fit together."""

import os
import signal
import threading
import time

from common import ranks

NOTED = b"\nstopping: a checkpoint is written at the end of this step's sampling or update; Ctrl-C once more stops at once\n"


class Signals:
    """Takes SIGINT and SIGTERM over from Python until `release`. In another thread than the main one it takes nothing."""

    def __init__(self) -> None:
        self.number, self.since, self.before = 0, 0.0, {}
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}

    def _note(self, number: int, frame: object) -> None:
        # torchrun passes on what the terminal has sent already: the second of the two is no second wish
        if self.number and number == signal.SIGINT and time.monotonic() - self.since > 1:
            raise KeyboardInterrupt
        if not self.number:
            self.number, self.since = number, time.monotonic()
            if ranks.rank() == 0:
                os.write(2, NOTED)  # print may be what was interrupted

    def asked(self) -> int:
        """The signal that any rank has noted, on every rank; 0 for none. Collective."""
        return max(ranks.together(lambda: self.number))

    def release(self) -> None:
        """Give both signals back."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}
