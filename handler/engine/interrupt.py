"""Interrupts what another thread does."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

_RETRY_S = 0.01


class Interruptible:
    """
    A block of code in this thread, which another thread watches and may interrupt.

    After its end nothing is raised. With a signal, in the main thread, it interrupts a sleep, a
    socket or a lock at once; without one, a call into C ends first.

    This is not a generator, because its beginning and its end need frames of their own: an
    exception raised in one of them would skip the end, so the watcher would go on.

    Args:
        name: Name of the watching thread.
        watch: What that thread does until ``over`` is set: it waits for something, then pokes.
        due: Returns what to raise after a poke, or None; called in this thread after a signal.
        signal_number: The signal; 0 for none.

    Attributes:
        over: Set at the end of the block.
        was_poked: Whether `poke` was called before the end.
    """

    def __init__(
        self,
        name: str,
        watch: Callable[[Interruptible], None],
        due: Callable[[], type[BaseException] | None],
        signal_number: int = 0,
    ) -> None:
        is_main = threading.current_thread() is threading.main_thread()
        self.over = threading.Event()
        self.was_poked = False
        self._is_pending = False
        self._lock = threading.Lock()
        self._due = due
        self._signal = signal_number if is_main else 0
        self._thread_id = threading.get_ident()
        self._watcher = threading.Thread(target=watch, args=(self,), name=name, daemon=True)

    def __enter__(self) -> Interruptible:
        if self._signal:
            self._before = signal.signal(self._signal, self._on_signal)
        self._watcher.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.over.set()
        with self._lock:  # Waits for a poke that is under way.
            pass
        if self._signal:
            signal.signal(self._signal, self._before)

    def poke(self) -> None:
        """
        Interrupt the block, if *due* returns something to raise.

        Nothing is raised while a block begins or ends; the poke is repeated until that is over.
        """
        self._is_pending = True
        while self._is_pending:
            with self._lock:
                if self.over.is_set():
                    return
                self.was_poked = True
                if self._signal:
                    signal.pthread_kill(self._thread_id, self._signal)
                else:
                    kind = self._kind(sys._current_frames().get(self._thread_id))
                    if kind is not None:
                        raise_in_thread(self._thread_id, kind)
            self.over.wait(_RETRY_S)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if (kind := self._kind(frame)) is not None:
            raise kind

    def _kind(self, frame: FrameType | None) -> type[BaseException] | None:
        """What to raise at *frame*; None where nothing may be raised now, or nothing is due."""
        edges = (Interruptible.__enter__.__code__, Interruptible.__exit__.__code__)
        while frame is not None and self._is_pending:
            if frame.f_code in edges:
                return None
            frame = frame.f_back
        if not self._is_pending or self.over.is_set():
            return None
        self._is_pending = False
        return self._due()


def raise_in_thread(thread_id: int, kind: type[BaseException]) -> None:
    """Raise *kind* in another thread at its next bytecode; a call into C ends first."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(kind))
