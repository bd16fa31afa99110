"""Followers: threads of a replica that take over, again and again, what others change."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from serving.logs import Outage

logger = logging.getLogger("bespoke.followers")


class Followers:
    """Each takes its step every `poll_s` seconds; a step that fails is logged once and taken again."""

    def __init__(self, poll_s: float) -> None:
        self.poll_s = poll_s
        self.stopped = threading.Event()
        self._woken: list[threading.Event] = []
        self._threads: list[threading.Thread] = []

    def follow(self, step: Callable[[], None], woken: threading.Event | None = None) -> None:
        """Have a step taken from `start` on; at once when `woken` is set, which the step must clear."""
        if woken is not None:
            self._woken.append(woken)
        wait = (woken or self.stopped).wait
        self._threads.append(threading.Thread(target=self._run, args=(step, wait), name=step.__name__, daemon=True))

    @property
    def alive(self) -> bool:
        """Whether none of them has died."""
        return all(thread.is_alive() for thread in self._threads)

    def start(self) -> None:
        """Begin to follow."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let steps under way finish, for five seconds each at most."""
        self.stopped.set()
        for woken in self._woken:
            woken.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=5)

    def _run(self, step: Callable[[], None], wait: Callable[[float], bool]) -> None:
        outage = Outage(
            logger, f"could not {step.__name__.strip('_').replace('_', ' ')}; the last view stays in service"
        )
        while not self.stopped.is_set():
            wait(self.poll_s)
            try:
                step()
                outage.over()
            except Exception:  # a follower must outlive whatever the store or a release folder does
                if not self.stopped.is_set():
                    outage.failed()
                    self.stopped.wait(self.poll_s)
