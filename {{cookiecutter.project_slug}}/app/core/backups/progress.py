"""How far long work is: one line that changes for a person, a line now and then for a log."""

import shutil
import sys
import time
from threading import Event, Thread
from typing import Self

import click
import structlog

LOG_EVERY_SECONDS = 5
SHOW_EVERY_SECONDS = 0.2
LINE = "\r\033[K"

log = structlog.get_logger("backup")


class Progress:
    """Called with words as often as the work likes. They go to stderr, also while it is silent."""

    def __init__(self, production: bool) -> None:
        self.production = production
        self.is_watched = sys.stderr.isatty()
        self.words = ""
        self.is_over = Event()
        self.talker = Thread(target=self._talk, daemon=True)

    def __call__(self, words: str) -> None:
        self.words = words

    @property
    def seconds(self) -> float:
        """Since the work began."""
        return time.monotonic() - self.started

    def __enter__(self) -> Self:
        self.started = time.monotonic()
        self.talker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        self.talker.join()
        if self.is_watched:
            print(LINE, end="", file=sys.stderr, flush=True)

    def _talk(self) -> None:
        while not self.is_over.wait(SHOW_EVERY_SECONDS if self.is_watched else LOG_EVERY_SECONDS):
            words = f"{self.words}, {self.seconds:.0f} s"
            if not self.words:
                continue
            if self.is_watched:
                width = shutil.get_terminal_size().columns - 1
                print(f"{LINE}{words[:width]}", end="", file=sys.stderr, flush=True)
            elif self.production:
                log.info(words)
            else:
                click.echo(words, err=True)
