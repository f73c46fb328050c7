"""Running tasks: on threads of this process, or on the workers of an active dask.distributed client."""

import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from xloader.store.new_files import unfinished
from xloader.threads import n_cpus


class Work(ABC):
    """
    Tasks that touch no file in common, each of which may be done again, in any process.

    It pickles as a recipe: files are opened where a task is done.
    """

    n_tasks: int
    """Number of tasks; they may run at the same time."""
    task_nbytes: int
    """Bytes that one task needs at most."""
    rung: int = 0
    """The rung of the ladder of types that values are known to need."""

    @abstractmethod
    def do(self, task: int) -> int:
        """
        Do one task.

        Parameters
        ----------
        task : int
            Which one.

        Returns
        -------
        int
            The rung of the ladder of types that its values were written in.

        Raises
        ------
        ReadError
            If the source cannot be read.
        """


Done = Callable[[int, int], None]
"""Called with each task that is done and its rung, from any thread."""


def run_tasks(work: Work, tasks: Sequence[int], budget: int, root: Path, done: Done) -> None:
    """
    Do tasks, several at the same time; after a failure none is left that still writes.

    Parameters
    ----------
    work : Work
        What they are tasks of.
    tasks : sequence of int
        Which ones.
    budget : int
        Bytes that the tasks running in one process at the same time may take.
    root : Path
        Directory of the store that is built.
    done : callable
        Told of every task that is done.
    """
    most = max(1, budget // max(work.task_nbytes, 1))
    client = active_client()
    if not tasks:
        return
    if client is None:
        _on_threads(work, tasks, min(n_cpus(), most), done)
    else:
        _on_client(client, work, tasks, most, root, done)


def active_client() -> Any:
    """
    Return the client of dask.distributed that the user has made.

    Returns
    -------
    distributed.Client or None
        None where nobody imported distributed, or no client is open.
    """
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        client = distributed.default_client()
    except ValueError:
        return None
    return client if client.status == "running" else None


def _on_threads(work: Work, tasks: Sequence[int], workers: int, done: Done) -> None:
    def do(task: int) -> None:
        done(task, work.do(task))

    # a pool of its own: after a failure, it is empty
    pool = ThreadPoolExecutor(workers)
    try:
        futures = [pool.submit(do, task) for task in tasks]
        wait(futures, return_when=FIRST_EXCEPTION)
    finally:
        pool.shutdown(cancel_futures=True)
    for future in futures:
        if not future.cancelled():
            future.result()


def _on_client(
    client: Any, work: Work, tasks: Sequence[int], most: int, root: Path, done: Done
) -> None:
    import dask

    distributed: Any = sys.modules["distributed"]
    stop = unfinished(root / "~stop")  # tasks that have not begun do nothing once it is there
    # large graph: arrays of row numbers may be, and are sent once
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"}):
        # in a task of its own, so that it is there again if its worker is lost
        recipe = client.submit(_same, work, pure=False)
        do = partial(_do, most=most, stop=stop)
        futures = client.map(do, list(tasks), work=recipe, pure=False)
    try:
        for future in distributed.as_completed(futures):
            done(*future.result())
    except BaseException:
        stop.touch()
        distributed.wait(futures)
        stop.unlink()
        raise


def _same(work: Work) -> Work:
    return work


def _do(task: int, work: Work, most: int, stop: Path) -> tuple[int, int]:
    with _slots(most):
        return task, -1 if stop.exists() else work.do(task)


@lru_cache(maxsize=16)
def _slots(most: int) -> threading.BoundedSemaphore:
    """Limit how many tasks a worker does at the same time, whatever its number of threads."""
    return threading.BoundedSemaphore(most)
