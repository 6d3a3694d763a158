"""A process that waits in C for what never comes, and is sent a signal."""

from __future__ import annotations

from cases import python

HEARD, UNHEARD = 3, 5
# A lock that is held already waits for ever, whatever signals come.
WAITS = """
import ctypes, os, signal, threading
from palm.{wing}.processes import interruptibly
def end(*_):
    raise SystemExit({heard})
signal.signal(signal.SIGALRM, end)
signal.alarm(1)
late = threading.Timer(4, os._exit, [{unheard}])
late.daemon = True
late.start()
lock, held = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
lock(held)
def wait():
    lock(held)
{call}
os._exit(0)
"""


def status(wing: str, *, interruptible: bool) -> int:
    """The exit status of a process that waits so, with the help of a wing or without."""
    call = "interruptibly(wait)" if interruptible else "wait()"
    code = WAITS.format(wing=wing, heard=HEARD, unheard=UNHEARD, call=call)
    return python(code + "\n").returncode
