"""``python -m rfpp``: the command line, with signals heard from the first moment to the last."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

_EXIT = 75  # that of rfpp.base.processes.Stopped, which takes seconds to import


def _leave(number: int, frame: FrameType | None) -> None:
    """End at once. Before the work begins, and after it has ended, nothing is left to write."""
    os.write(2, f"interrupted by {signal.Signals(number).name}; run the same command to go on\n".encode())
    os._exit(_EXIT)


def _run() -> int:
    heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    for number in heard:  # under nohup, one is ignored
        signal.signal(number, _leave)
    from rfpp import commands

    try:
        if signal.SIGINT in heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return commands.main()
    except KeyboardInterrupt:  # before or after the part that says what was kept
        return _EXIT
    finally:
        for number in heard:
            signal.signal(number, _leave)


if __name__ == "__main__":
    sys.exit(_run())
