"""Attention tensors of trained models, captured to an .npz file.

The arrays ``q [queries, H, D]``, ``k [tokens, G, D]`` and ``v [tokens, G, D]``, of any float dtype,
stand for one layer, or carry the prefix ``layerN.``. Optional, for all layers:

- ``query_positions [queries]``: the token each query belongs to; later keys are its future;
- ``needle_position``, one token or one for each query: what the queries look for. Where queries
  read a long needle token by token, only one for each tells the page that each must find.

Files come from anywhere: nothing is unpickled, and whatever is wrong raises CaptureError.
"""

import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from typing import BinaryIO

import numpy as np

from numbadsd.config import ModelConfig, check
from numbadsd.errors import CaptureError

MAX_NAMES = 24  # arrays of a file that a message lists
_LAYER_ARRAY = re.compile(r"layer(\d+)\.[qkv]")


@dataclass(frozen=True, eq=False)
class Capture:
    """One layer's tensors.

    Attributes
    ----------
    queries : ndarray [Q, H, D] float32
    keys, values : ndarray [tokens, G, D] float32
    query_positions : ndarray [Q] int64 or None
        The token each query belongs to; it may attend to that token and those before.
    layer : int or None
        The layer read; None where the arrays carry no layer.
    needle_positions : ndarray [Q] int64 or None
        The token each query looks for.
    """

    queries: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    query_positions: np.ndarray | None = None
    layer: int | None = None
    needle_positions: np.ndarray | None = None


def load_capture(path: str | PathLike, layer: int | None = None) -> Capture:
    """Read one layer of a capture; the unprefixed arrays or the lowest layer where `layer` is None.

    Raises
    ------
    CaptureError
        With one line naming the file and what is wrong with it.
    """
    with _open(path) as file, _open_archive(path, file) as archive:
        prefix, layer = _prefix(path, archive.files, layer)
        tensors = {name: _tensor(path, archive, prefix + name) for name in "qkv"}
        _check_shapes(path, prefix, **tensors)
        num_queries, num_tokens = len(tensors["q"]), len(tensors["k"])
        positions = _positions(path, archive, "query_positions", num_queries, num_tokens)
        needles = _positions(path, archive, "needle_position", num_queries, num_tokens)
    return Capture(tensors["q"], tensors["k"], tensors["v"], positions, layer, needles)


def _open(path) -> BinaryIO:
    """Open the file, or say why that is impossible."""
    try:
        if os.path.exists(path) and not os.path.isdir(path) and not os.path.isfile(path):
            raise CaptureError(f"{path}: not a regular file")  # a device may never end
        return open(path, "rb")
    except FileNotFoundError:
        raise CaptureError(f"{path}: no such file") from None
    except CaptureError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path no system accepts
        fault = "a directory, not a file" if os.path.isdir(path) else _one_line(error)
        raise CaptureError(f"{path}: {fault}") from None


def _open_archive(path, file: BinaryIO) -> np.lib.npyio.NpzFile:
    """Open the archive in an open file, which stays the caller's to close."""
    start = file.read(4)
    if not start:
        raise CaptureError(f"{path}: the file is empty")
    if not zipfile.is_zipfile(file):
        kind = "a truncated" if start.startswith(b"PK") else "not an"
        raise CaptureError(f"{path}: {kind} .npz archive")
    file.seek(0)
    try:
        archive = np.load(file, allow_pickle=False)
    except Exception as error:  # zip archives break in more ways than zipfile names
        raise CaptureError(f"{path}: a corrupt .npz archive ({_one_line(error)})") from None
    if not isinstance(archive, np.lib.npyio.NpzFile):  # an array with an archive behind it
        raise CaptureError(f"{path}: not an .npz archive")
    return archive


def _prefix(path, names: list[str], layer: int | None) -> tuple[str, int | None]:
    """The prefix of the arrays to read, and the layer it stands for."""
    matches = (_LAYER_ARRAY.fullmatch(name) for name in names)
    layers = sorted({int(match[1]) for match in matches if match})
    if layer is None:
        if not layers or set(names) & set("qkv"):
            return "", None
        return f"layer{layers[0]}.", layers[0]
    if layer not in layers:
        there = "layers " + ", ".join(map(str, layers)) if layers else "no layers"
        raise CaptureError(f"{path}: layer {layer} is not in the file, which has {there}")
    return f"layer{layer}.", int(layer)


def _read(path, archive, name: str) -> np.ndarray:
    """One array of the archive, as stored."""
    if name not in archive.files:
        there = _one_line(", ".join(sorted(archive.files)[:MAX_NAMES])) or "nothing"
        raise CaptureError(f"{path}: array {name} is missing; the file holds {there}")
    try:
        array = archive[name]
    except Exception as error:  # zip, zlib and npy parsers each fail in their own ways
        raise CaptureError(f"{path}: array {name} cannot be read ({_one_line(error)})") from None
    if not isinstance(array, np.ndarray):
        raise CaptureError(f"{path}: {name} is not an array")
    return array


def _tensor(path, archive, name: str) -> np.ndarray:
    """A three-dimensional float array of finite numbers, as float32."""
    array = _read(path, archive, name)
    if not np.issubdtype(array.dtype, np.floating):
        raise CaptureError(f"{path}: array {name} has dtype {array.dtype}, want a float dtype")
    if array.ndim != 3:
        raise CaptureError(f"{path}: array {name} has shape {array.shape}, want 3 dimensions")
    if 0 in array.shape:
        raise CaptureError(f"{path}: array {name} of shape {array.shape} is empty")
    with np.errstate(over="ignore"):  # too large for float32 is found just below
        array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        bad = array.size - np.count_nonzero(np.isfinite(array))
        raise CaptureError(f"{path}: array {name} has {bad} elements that are NaN or infinite")
    return array


def _check_shapes(path, prefix: str, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> None:
    """Refuse tensors that do not belong together, or that no cache can hold."""
    if k.shape != v.shape:
        raise CaptureError(f"{path}: {prefix}k has shape {k.shape}, {prefix}v {v.shape}")
    if q.shape[2] != k.shape[2]:
        raise CaptureError(
            f"{path}: {prefix}q has head_dim {q.shape[2]}, {prefix}k has {k.shape[2]}"
        )
    if q.shape[1] % k.shape[1]:
        raise CaptureError(
            f"{path}: {prefix}q has {q.shape[1]} heads, no multiple of the {k.shape[1]} kv heads"
        )
    try:
        ModelConfig(num_heads=q.shape[1], num_kv_heads=k.shape[1], head_dim=q.shape[2])
    except ValueError as error:
        raise CaptureError(f"{path}: {_one_line(error)}") from None


def _positions(path, archive, name: str, num_queries: int, num_tokens: int) -> np.ndarray | None:
    """An optional token position per query, [Q] int64; a single one stands for all queries."""
    if name not in archive.files:
        return None
    array = _read(path, archive, name)
    if not np.issubdtype(array.dtype, np.integer):
        raise CaptureError(f"{path}: {name} has dtype {array.dtype}, want an integer dtype")
    single = array.ndim == 0 and name == "needle_position"
    if not single and array.shape != (num_queries,):
        raise CaptureError(f"{path}: {name} has shape {array.shape}, want ({num_queries},)")
    if array.min() < 0 or array.max() >= num_tokens:
        bad = array.min() if array.min() < 0 else array.max()
        raise CaptureError(f"{path}: {name} holds {bad}, want [0, {num_tokens})")
    return np.broadcast_to(array, (num_queries,)).astype(np.int64)


def _one_line(what: object) -> str:
    """What an exception or a text says, without line breaks."""
    return " ".join(str(what).split()) or (type(what).__name__ if what else "")


class CapturedWorkload:
    """Captured queries as a batch, one request each, over the keys that the query may see.

    Parameters
    ----------
    capture : Capture
    batch_size : int
        Requests wanted; of more queries, evenly spaced ones are taken, of fewer, all.
    page_size : int, optional
        Tokens of a page; needed to say which page the needle is in.
    """

    def __init__(self, capture: Capture, batch_size: int, page_size: int | None = None):
        check(batch_size >= 1, "batch_size", batch_size, "at least 1")
        check(page_size is None or page_size >= 1, "page_size", page_size, "at least 1")
        num_queries = len(capture.queries)
        batch_size = min(batch_size, num_queries)
        chosen = np.arange(batch_size) * num_queries // batch_size
        self.capture = capture
        self.queries = capture.queries[chosen]
        self.context_tokens = np.full(batch_size, len(capture.keys), np.int64)
        if capture.query_positions is not None:
            self.context_tokens = capture.query_positions[chosen] + 1
        self.needle_pages = None
        if capture.needle_positions is not None and page_size is not None:
            needles = capture.needle_positions[chosen]
            visible = needles < self.context_tokens  # a needle in the future is none
            self.needle_pages = [
                np.array([needle // page_size] if seen else [], np.int64)
                for needle, seen in zip(needles, visible, strict=True)
            ]

    def chunks(
        self, request_index: int, max_tokens: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:  # keys, values [n, G, D] f32
        """Keys and values of a request in order, at most `max_tokens` at a time."""
        batch_size = len(self.context_tokens)
        in_batch = 0 <= request_index < batch_size
        check(in_batch, "request_index", request_index, f"in [0, {batch_size})")
        check(max_tokens >= 1, "max_tokens", max_tokens, "at least 1")
        tokens = int(self.context_tokens[request_index])
        spans = (slice(i, min(i + max_tokens, tokens)) for i in range(0, tokens, max_tokens))
        return ((self.capture.keys[span], self.capture.values[span]) for span in spans)
