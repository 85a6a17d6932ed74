"""Files that are whole: what was there before stays until the new one is complete."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path, *, binary: bool = False) -> Iterator[IO]:
    """Open a temporary file, UTF-8 text unless `binary`, that becomes `path` when all went well.

    Raises
    ------
    OSError
        When it cannot be written; what was at `path` before is still there, and nothing else.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    text = {} if binary else {"encoding": "utf-8", "newline": ""}
    try:
        with os.fdopen(handle, "wb" if binary else "w", **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # a full disk may show only here, and not after the rename
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
