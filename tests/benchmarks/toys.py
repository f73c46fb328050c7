"""Contenders that are made and run at once, for the tests."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[[], Any]


def delivers(folder: Path, *, total: float = 10.0, first: float = 0.0) -> Run:  # noqa: ARG001
    """Deliver what the options say, the first time after some seconds."""
    delays = [0.002, first]

    def run() -> tuple[int, dict[str, float]]:
        time.sleep(delays.pop() if len(delays) > 1 else delays[0])
        return 5, {"total": total}

    return run


def raises(folder: Path) -> Run:
    """Fail when it is made."""
    msg = f"no store in {folder}"
    raise ValueError(msg)


def dies(folder: Path) -> Run:  # noqa: ARG001
    """End without a word."""
    return lambda: os._exit(3)


def ticks(folder: Path) -> Run:
    """Work all the time, in a thread."""

    def work() -> None:
        while True:
            with (folder / "ticks").open("a") as f:
                f.write(".")
            time.sleep(0.001)

    threading.Thread(target=work, daemon=True).start()
    return lambda: (1, {"total": 1.0})
