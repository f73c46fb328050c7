"""Asking the process that reads .hic files: started when needed, one for each process that asks."""

import atexit
import importlib.util
import json
import os
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xloader.errors import ReadError

IDLE = 3.0
"""Seconds without a request after which the helper ends; until then it keeps a processor busy."""

TIMEOUT = 120.0
"""Seconds without an answer after which the helper is given up."""

_SCRIPT = Path(__file__).with_name("hic_helper.py")


class _EndedError(Exception):
    """The helper ended by itself, as none had asked it for a while."""


class _Helper:
    """A running helper; requests come one at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, what: str, request: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
        """Send a request and wait for the answer; a helper that ended in the meantime is renewed."""
        with self.lock:
            for _ in range(2):
                process = self._started()
                try:
                    return self._exchange(process, what, request)
                except _EndedError:
                    self.end()
                except BaseException:  # interrupted: the next request must not get this answer
                    self.end()
                    raise
            msg = (
                f"cannot read {what}: the process that reads .hic files ends at once; read it again"
            )
            raise ReadError(msg)

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            if importlib.util.find_spec("hictkpy") is None:
                msg = (
                    ".hic files are read by hictkpy, which is not installed: "
                    "pip install 'xloader[hic]' (or pip install hictkpy)"
                )
                raise ReadError(msg)
            # by path, and without its folder on the path, whose modules are named as packages are
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_SCRIPT), str(IDLE)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                bufsize=0,
            )
        return self._process

    def _exchange(
        self, process: "subprocess.Popen[bytes]", what: str, request: dict[str, Any]
    ) -> tuple[dict[str, Any], list[Any]]:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            length = bytearray(8)
            self._fill(process, what, memoryview(length))
            line = bytearray(int.from_bytes(length, "little"))
            self._fill(process, what, memoryview(line))
            header = json.loads(line)
            arrays = [np.empty(a["shape"], a["dtype"]) for a in header["arrays"]]
            for array in arrays:
                self._fill(process, what, array.reshape(-1).view(np.uint8).data)
        except BrokenPipeError:
            raise self._lost(process, what) from None
        return header, arrays

    def _fill(self, process: "subprocess.Popen[bytes]", what: str, view: memoryview) -> None:
        """Receive as many bytes as there is room for."""
        assert process.stdout is not None
        answers = process.stdout.fileno()
        while view:
            if not select.select([answers], [], [], TIMEOUT)[0]:
                msg = (
                    f"cannot read {what}: the process that reads .hic files gave no answer for "
                    f"{TIMEOUT:.0f} s and was ended; the file is damaged, or its disk does not answer"
                )
                raise ReadError(msg)
            n = os.readv(answers, [view])
            if not n:
                raise self._lost(process, what)
            view = view[n:]

    def _lost(self, process: "subprocess.Popen[bytes]", what: str) -> Exception:
        """Return why there is no answer."""
        code = process.wait()
        if code == 0:
            return _EndedError()
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        return ReadError(
            f"cannot read {what}: the process that reads .hic files died ({how}); out of memory, or "
            "on damaged bytes. Read it again, with a smaller `memory_budget` if memory is short; if "
            "it dies again, get a new copy of the file"
        )

    def end(self) -> None:
        """End the helper, if one runs."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


class _Helpers:
    """The helpers by process: one inherited through fork answers the parent."""

    def __init__(self) -> None:
        self.by_pid: dict[int, _Helper] = {}

    def mine(self) -> _Helper:
        """Return the helper of this process."""
        return self.by_pid.setdefault(os.getpid(), _Helper())


_helpers = _Helpers()


def end_helper() -> None:
    """End the helper of this process, if one runs; the next request starts another."""
    _helpers.mine().end()


atexit.register(end_helper)


def ask(what: str, **request: Any) -> tuple[dict[str, Any], list[npt.NDArray[Any]]]:
    """
    Have something read from a .hic file.

    Parameters
    ----------
    what : str
        What is read, for messages.
    **request
        `ask`, a function of `hic_helper`, and its parameters.

    Returns
    -------
    header : dict
        What the function returned.
    arrays : list of ndarray
        The arrays that came with it.

    Raises
    ------
    ReadError
        If hictkpy is not installed, the file cannot be read, or the helper died.
    """
    header, arrays = _helpers.mine().ask(what, request)
    if "error" in header:
        msg = f"cannot read {what}: {header['error']}"
        raise ReadError(msg)
    return header, arrays
