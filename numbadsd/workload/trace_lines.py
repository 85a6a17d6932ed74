"""The lines of a text file that comes from anywhere, and the hash of all its bytes."""

import hashlib
import os
from collections.abc import Iterator
from os import PathLike
from typing import BinaryIO

from numbadsd.errors import TraceError

MAX_LINE_BYTES = 1 << 20  # a row with a million hash ids is no request
BLOCK_BYTES = 1 << 20
MAX_SHOWN = 60  # characters of a file that a message repeats


def shown(value: object) -> str:
    """What a file holds, as a message may repeat it: short, in one line, of ASCII."""
    text = ascii(value[: MAX_SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


class TraceLines:
    """The lines of a file, read one at a time, hashed as they pass; a context manager.

    Lines end with LF or CRLF; the last one may lack its end. A line longer than MAX_LINE_BYTES is
    never read whole.

    Parameters
    ----------
    path : str or PathLike
        A regular file of UTF-8 text.

    Raises
    ------
    TraceError
        In one line: the file, the number of the line where there is one, got and want.
    """

    def __init__(self, path: str | PathLike):
        self._path = os.fspath(path)
        self.number = 0  # of the line read last
        self._file = self._open()
        self._hash = hashlib.sha256()

    def __enter__(self) -> "TraceLines":
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[str]:
        """Give each line that is not blank, without its end."""
        while line := self._read(self._file.readline, MAX_LINE_BYTES + 1):
            self.number += 1
            self._hash.update(line)
            text = self._decode(line)
            if text and not text.isspace():
                yield text

    def sha256(self) -> str:
        """Hash of the whole file, in hexadecimal; reads what no line has taken yet."""
        while block := self._read(self._file.read, BLOCK_BYTES):
            self._hash.update(block)
        return self._hash.hexdigest()

    def refuse(self, what: str) -> TraceError:
        """Make the error that says what is wrong with the line read last, or the file."""
        line = f":{self.number}" if self.number else ""
        return TraceError(f"{self._path}{line}: {what}")

    def _open(self) -> BinaryIO:
        """Open the file, or say why that is impossible."""
        if os.path.isdir(self._path):
            raise self.refuse("a directory, not a file")
        try:
            if os.path.exists(self._path) and not os.path.isfile(self._path):
                raise self.refuse("not a regular file")  # a device may never end
            return open(self._path, "rb")
        except FileNotFoundError:
            raise self.refuse("no such file") from None
        except TraceError:
            raise
        except (OSError, ValueError) as error:  # ValueError: a path no system accepts
            raise self.refuse(" ".join(str(error).split())) from None

    def _read(self, read, num_bytes: int) -> bytes:
        try:
            return read(num_bytes)
        except OSError as error:
            raise self.refuse(" ".join(str(error).split())) from None

    def _decode(self, line: bytes) -> str:
        """The text of a line, without its end and, in the first, without a byte-order mark."""
        if len(line) > MAX_LINE_BYTES:
            raise self.refuse(f"got more than {MAX_LINE_BYTES} bytes, want a shorter line")
        try:
            text = line.decode("utf-8-sig" if self.number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            bad = f"byte 0x{line[error.start]:02x} at {error.start}"
            raise self.refuse(f"got {bad} of the line, want UTF-8 text") from None
        if "\0" in text:
            raise self.refuse("got a NUL byte, want text")
        return text.rstrip("\r\n")
