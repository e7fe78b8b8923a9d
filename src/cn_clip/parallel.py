"""Work in threads, results in order: what decodes pictures while the rest of the program runs.

    for picture in map_in_threads(decode, rows, workers=4, ahead=64): ...

Pillow and NumPy release the lock while they work, so threads are enough.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_in_threads(
    function: Callable[[T], R], items: Iterable[T], workers: int, ahead: int
) -> Generator[R, None, None]:
    """`map` in threads, in order, never more than `ahead` items in front of the consumer.

    `items` are drawn in the consumer's own thread. An exception of `function` is raised where its result would
    have stood. When the consumer stops (closes the iterator), what has not begun is not done.

    Args:
        function: called in one of the threads.
        items: any number of them.
        workers: threads, at least 1.
        ahead: items drawn and not yet taken as results, at least 1; bounds the memory.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def threads_or_default(threads: int) -> int:
    """`threads`, or one a processor core when it is 0 or less."""
    return threads if threads > 0 else os.cpu_count() or 1
