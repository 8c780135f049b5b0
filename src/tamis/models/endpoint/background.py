"""An event loop in a thread of its own, so that callers inside a loop (notebooks) can wait for what it does."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """A running event loop. It holds nothing of those who use it, so that they can be collected and then close it.

    `last` is run in it when it is closed.
    """

    def __init__(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._loop, self._last = asyncio.new_event_loop(), last
        self._thread = threading.Thread(target=self._run, name="tamis-endpoint", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
            with suppress(asyncio.CancelledError):
                self._loop.run_until_complete(task)
        self._loop.run_until_complete(self._last())
        self._loop.close()

    @contextmanager
    def running(self, work: Coroutine[Any, Any, None]) -> Iterator[None]:
        """Run a coroutine in the loop; at the end it is cancelled and waited for."""
        ended = threading.Event()
        tasks: list[asyncio.Task[None]] = []

        def begin() -> None:
            tasks.append(self._loop.create_task(work))
            tasks[0].add_done_callback(lambda _: ended.set())

        self.call(begin)
        try:
            yield
        finally:
            self.call(lambda: tasks[0].cancel())
            ended.wait()

    def result(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what a coroutine gives when it is run in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Have a function called in the loop; nothing happens once it is closed."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)

    def close(self) -> None:
        """Cancel what runs, do what is last, end the loop and wait for its thread."""
        self.call(self._loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join()
