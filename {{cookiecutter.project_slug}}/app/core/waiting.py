"""Trying again, and telling now and then what for, or how far long work is."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

LONGEST_PAUSE_SECONDS = 5
TELL_EVERY_SECONDS = 5


def tries(seconds: float, pause: float) -> Iterator[float]:
    """Yield how long one has waited: at once, then after each pause, until the time is over.

    for waited in tries(60, pause=0.3):
        if it_works():
            return
    raise NotInTime
    """
    started = time.monotonic()
    waited = 0.0
    yield waited
    while waited < seconds:
        time.sleep(min(pause, seconds - waited))
        waited = time.monotonic() - started
        yield waited


def pause_after(attempt: int) -> float:
    """Seconds to wait after the first, second, … attempt: each time twice as long."""
    return min(0.1 * 2.0**attempt, LONGEST_PAUSE_SECONDS)


def at_most_every(seconds: float, say: Callable[[str], object]) -> Callable[[str], None]:
    """`say`, which stays silent when it spoke less than so many seconds ago."""
    due = 0.0

    def report(words: str) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + seconds
            say(words)

    return report


@contextmanager
def telling(what: str) -> Iterator[Callable[[str], None]]:
    """Tell on stderr what is going on, every few seconds for as long as the block runs.

    with telling("judging revisions") as tell:
        …
        tell("judging revisions: 120 of 549 done")
    """
    words = what
    is_over = Event()

    def tell(new_words: str) -> None:
        nonlocal words
        words = new_words

    def talk() -> None:
        while not is_over.wait(TELL_EVERY_SECONDS):
            print(words, file=sys.stderr, flush=True)

    talker = Thread(target=talk, daemon=True)
    talker.start()
    try:
        yield tell
    finally:
        is_over.set()
        talker.join()
