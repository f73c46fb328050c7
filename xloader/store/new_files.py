"""Files that get their name when they are whole, so that nobody ever reads a part of one."""

import re
import uuid
from collections.abc import Sequence
from pathlib import Path


def unfinished(path: Path) -> Path:
    """
    Return where a file is written before it gets its name.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    Path
        A sibling, another one each time, so that no two processes write the same.
    """
    return path.with_name(f"{path.name}~{uuid.uuid4().hex}")


def is_unfinished(name: str) -> bool:
    """
    Say whether a file was left by a process that was killed while it wrote.

    Parameters
    ----------
    name : str
        Name of the file.

    Returns
    -------
    bool
        Whether `unfinished` made it.
    """
    return re.fullmatch(r".*~[0-9a-f]{32}", name) is not None


def replace_file(path: Path, content: Sequence[bytes | memoryview]) -> None:
    """
    Write a file, of which no other process ever sees a part.

    Parameters
    ----------
    path : Path
        The file; its folder is made if it is not there.
    content : sequence of bytes or memoryview
        One after the other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = unfinished(path)
    with new.open("wb") as file:
        file.writelines(content)
    new.replace(path)
