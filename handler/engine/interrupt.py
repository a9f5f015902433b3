"""Interrupting what another thread does."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

_AGAIN_S = 0.01


class Interruptible:
    """
    A part of what this thread does, which another one watches and interrupts; once it is left, nothing is raised any more.

    With a signal, in the main thread, a sleep, a socket or a lock is left at once; else a call into C ends first. It is no
    generator, so that its beginning and its end have frames by which they are known: what was raised in one of them would leave
    nobody to end the raising.

    Args:
        name: Of the thread that watches.
        watch: What it does, until ``over`` is set: it waits for something, and pokes.
        due: What to raise after a poke, asked in this thread where a signal came; None for nothing.
        number: The signal.

    ``was_poked`` says whether a poke came before the end.
    """

    def __init__(
        self,
        name: str,
        watch: Callable[[Interruptible], object],
        due: Callable[[], type[BaseException] | None],
        number: int = 0,
    ) -> None:
        self.over, self.was_poked, self._is_asked, self._lock, self._due = (
            threading.Event(),
            False,
            False,
            threading.Lock(),
            due,
        )
        self._number = number if threading.current_thread() is threading.main_thread() else 0
        self._interrupted = threading.get_ident()
        self._watching = threading.Thread(target=watch, args=(self,), name=name, daemon=True)

    def __enter__(self) -> Interruptible:
        if self._number:
            self._before = signal.signal(self._number, self._on_signal)
        self._watching.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.over.set()
        with self._lock:  # No poke is under way any more.
            pass
        if self._number:
            signal.signal(self._number, self._before)

    def poke(self) -> None:
        """Interrupt, if there is something due; while a part is being entered or left nothing is raised, and it is tried again."""
        self._is_asked = True
        while self._is_asked:
            with self._lock:
                if self.over.is_set():
                    return
                self.was_poked = True
                if self._number:
                    signal.pthread_kill(self._interrupted, self._number)
                elif (kind := self._kind(sys._current_frames().get(self._interrupted))) is not None:
                    raise_in_thread(self._interrupted, kind)
            self.over.wait(_AGAIN_S)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if (kind := self._kind(frame)) is not None:
            raise kind

    def _kind(self, frame: FrameType | None) -> type[BaseException] | None:
        while frame is not None and self._is_asked:
            if frame.f_code in (Interruptible.__enter__.__code__, Interruptible.__exit__.__code__):
                return None
            frame = frame.f_back
        if not self._is_asked or self.over.is_set():
            return None
        self._is_asked = False
        return self._due()


def raise_in_thread(thread_id: int, kind: type[BaseException]) -> None:
    """Raise *kind* in another thread at its next bytecode; a call into C ends first."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(kind))
