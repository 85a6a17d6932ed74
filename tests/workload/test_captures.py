"""Captured tensors: what a good file gives, and one line of complaint for every bad one."""

import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from numbadsd.errors import CaptureError
from numbadsd.workload.captures import Capture, CapturedWorkload, load_capture

CAPTURES = Path(__file__).resolve().parents[3] / "shared" / "data" / "captures"


def tensors(queries=3, heads=4, kv_heads=2, head_dim=16, tokens=10, prefix="", seed=0):
    """Return the arrays of one layer, float32."""
    rng = np.random.default_rng(seed)
    shapes = {"q": (queries, heads, head_dim)}
    shapes["k"] = shapes["v"] = (tokens, kv_heads, head_dim)
    return {prefix + n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


def save(tmp_path, arrays, **options):
    """Write the arrays to an .npz file; return its path."""
    path = tmp_path / "capture.npz"
    np.savez(path, **arrays, **options)
    return path


def fault_of(path, layer=None):
    """Return the complaint about a file, without the file's name."""
    with pytest.raises(CaptureError) as caught:
        load_capture(path, layer)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_plain_arrays_are_read_as_float32(tmp_path):
    arrays = tensors()
    stored = {"q": arrays["q"].astype(np.float64), "k": arrays["k"].astype(np.float16)}
    capture = load_capture(str(save(tmp_path, arrays | stored)))
    assert np.array_equal(capture.queries, arrays["q"])
    assert np.array_equal(capture.keys, stored["k"].astype(np.float32))
    assert np.array_equal(capture.values, arrays["v"])
    assert {a.dtype for a in (capture.queries, capture.keys, capture.values)} == {
        np.dtype(np.float32)
    }
    assert capture.layer is capture.query_positions is capture.needle_positions is None


def test_the_lowest_layer_is_read_unless_another_is_named(tmp_path):
    layers = {n: tensors(prefix=f"layer{n}.", seed=n) for n in (10, 2)}
    path = save(tmp_path, layers[10] | layers[2])
    assert load_capture(path).layer == 2
    assert np.array_equal(load_capture(path).keys, layers[2]["layer2.k"])
    assert load_capture(path, 10).layer == 10
    assert np.array_equal(load_capture(path, layer=10).queries, layers[10]["layer10.q"])


def test_plain_arrays_come_before_layers(tmp_path):
    plain = tensors(seed=5)
    capture = load_capture(save(tmp_path, tensors(prefix="layer0.") | plain))
    assert capture.layer is None and np.array_equal(capture.keys, plain["k"])


def test_a_compressed_file_with_unknown_arrays_is_read(tmp_path):
    path = tmp_path / "capture.npz"
    np.savez_compressed(path, **tensors(), note=np.array([1, 2]))
    assert load_capture(path).keys.shape == (10, 2, 16)


def test_positions_are_read_and_a_single_needle_stands_for_all_queries(tmp_path):
    extra = {"query_positions": np.array([9, 0, 4], np.int32), "needle_position": np.array(3)}
    capture = load_capture(save(tmp_path, tensors() | extra))
    assert capture.query_positions.tolist() == [9, 0, 4]
    assert capture.query_positions.dtype == np.int64
    assert capture.needle_positions.tolist() == [3, 3, 3]
    extra["needle_position"] = np.array([1, 2, 3])
    assert load_capture(save(tmp_path, tensors() | extra)).needle_positions.tolist() == [1, 2, 3]


def test_a_missing_file_and_a_directory_are_named(tmp_path):
    assert fault_of(tmp_path / "none.npz") == "no such file"
    assert fault_of(tmp_path) == "a directory, not a file"


def test_files_that_are_no_archive_are_refused(tmp_path):
    path = tmp_path / "file.npz"
    path.write_bytes(b"")
    assert fault_of(path) == "the file is empty"
    path.write_text("q,k,v\n1,2,3\n")
    assert fault_of(path) == "not an .npz archive"
    np.save(tmp_path / "single.npy", np.zeros(3))
    assert fault_of(tmp_path / "single.npy") == "not an .npz archive"
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], object), allow_pickle=True)
    assert fault_of(tmp_path / "pickled.npy") == "not an .npz archive"


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_a_truncated_archive_is_refused(tmp_path, part):
    whole = save(tmp_path, tensors()).read_bytes()
    path = tmp_path / "cut.npz"
    path.write_bytes(whole[: int(len(whole) * part)])
    assert fault_of(path) == "a truncated .npz archive"


def test_every_flipped_byte_is_read_or_refused_but_never_anything_else(tmp_path):
    whole = bytearray(
        save(tmp_path, tensors(queries=1, heads=1, kv_heads=1, tokens=1)).read_bytes()
    )
    path, refused = tmp_path / "flipped.npz", 0
    for position in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            assert isinstance(load_capture(path), Capture)
        except CaptureError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            refused += 1
    assert refused > len(whole) / 5 / 2


def test_an_array_with_an_archive_behind_it_is_refused(tmp_path):
    archive = save(tmp_path, tensors()).read_bytes()
    path = tmp_path / "both.npz"
    np.save(tmp_path / "single.npy", np.zeros(3))
    path.write_bytes((tmp_path / "single.npy").read_bytes() + archive)
    assert fault_of(path) == "not an .npz archive"


def test_a_damaged_array_is_named(tmp_path):
    path = save(tmp_path, tensors())
    data = bytearray(path.read_bytes())
    data[data.index(b"k.npy") + 400] ^= 0xFF
    path.write_bytes(data)
    assert fault_of(path).startswith("array k cannot be read (Bad CRC-32")


def test_pickled_arrays_are_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    bomb = np.empty((1, 1, 16), object)
    bomb[...] = Bomb()
    path = save(tmp_path, tensors() | {"k": bomb}, allow_pickle=True)
    assert "array k cannot be read (Object arrays cannot be loaded" in fault_of(path)
    assert not (tmp_path / "exploded").exists()


def test_a_member_that_is_no_array_is_refused(tmp_path):
    path = save(tmp_path, {n: a for n, a in tensors().items() if n != "v"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("v.npy", b"nothing like an array")
    assert fault_of(path).startswith("v is not an array")


@pytest.mark.parametrize("missing", "qkv")
def test_a_missing_array_is_named_with_those_that_are_there(tmp_path, missing):
    arrays = {n: a for n, a in tensors().items() if n != missing}
    there = ", ".join(sorted(arrays))
    fault = fault_of(save(tmp_path, arrays))
    assert fault == f"array {missing} is missing; the file holds {there}"
    layered = {f"layer3.{n}": a for n, a in arrays.items()}
    assert fault_of(save(tmp_path, layered)).startswith(f"array layer3.{missing} is missing")


def test_a_file_of_other_things_says_what_it_holds(tmp_path):
    arrays = {"weights": np.zeros(2), "bias": np.zeros(1)}
    assert fault_of(save(tmp_path, arrays)) == "array q is missing; the file holds bias, weights"
    assert fault_of(save(tmp_path, {})) == "array q is missing; the file holds nothing"


def test_a_layer_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    path = save(tmp_path, tensors(prefix="layer2.") | tensors(prefix="layer11."))
    assert fault_of(path, 3) == "layer 3 is not in the file, which has layers 2, 11"
    plain = save(tmp_path, tensors())
    assert fault_of(plain, 0) == "layer 0 is not in the file, which has no layers"


def changed(**changes):
    """Return good arrays with some replaced."""
    return tensors() | changes


def poisoned(name, value):
    """Return good arrays, one element of one replaced."""
    arrays = tensors()
    arrays[name][1, 1, 3] = value
    return arrays


BAD_ARRAYS = {
    "two dimensions": (changed(q=np.zeros((4, 16), "f4")), "array q has shape (4, 16), want 3"),
    "four dimensions": (
        changed(k=np.zeros((1, 1, 1, 16), "f4")),
        "array k has shape (1, 1, 1, 16)",
    ),
    "k and v differ": (
        changed(v=np.zeros((9, 2, 16), "f4")),
        "k has shape (10, 2, 16), v (9, 2, 16)",
    ),
    "head_dim differs": (
        tensors() | {"q": np.zeros((3, 4, 32), "f4")},
        "q has head_dim 32, k has 16",
    ),
    "heads": (
        changed(q=np.zeros((3, 5, 16), "f4")),
        "q has 5 heads, no multiple of the 2 kv heads",
    ),
    "fewer heads than kv heads": (
        changed(q=np.zeros((3, 1, 16), "f4")),
        "q has 1 heads, no multiple",
    ),
    "head_dim no cache takes": (tensors(head_dim=24), "head_dim: got 24, want a multiple of 16"),
    "head_dim too large": (tensors(head_dim=1024, tokens=2), "head_dim: got 1024, want"),
    "integers": (changed(k=np.zeros((10, 2, 16), "i4")), "array k has dtype int32, want a float"),
    "complex": (changed(v=np.zeros((10, 2, 16), "c8")), "array v has dtype complex64"),
    "bool": (changed(q=np.zeros((3, 4, 16), bool)), "array q has dtype bool"),
    "text": (changed(q=np.full((3, 4, 16), "a")), "array q has dtype <U1"),
    "NaN": (poisoned("k", np.nan), "array k has 1 elements that are NaN or infinite"),
    "infinity": (poisoned("q", -np.inf), "array q has 1 elements that are NaN or infinite"),
    "beyond float32": (changed(v=np.full((10, 2, 16), 1e300)), "array v has 320 elements"),
    "no tokens": (tensors(tokens=0), "array k of shape (0, 2, 16) is empty"),
    "no queries": (tensors(queries=0), "array q of shape (0, 4, 16) is empty"),
    "no kv heads": (tensors(kv_heads=0), "array k of shape (10, 0, 16) is empty"),
    "position in the future": (changed(query_positions=[0, 10, 2]), "query_positions holds 10"),
    "negative position": (changed(query_positions=[0, -1, 2]), "query_positions holds -1"),
    "too few positions": (changed(query_positions=[1, 2]), "query_positions has shape (2,), want"),
    "one position for all": (changed(query_positions=2), "query_positions has shape (), want (3,)"),
    "fractional positions": (changed(query_positions=[0.0, 1, 2]), "query_positions has dtype"),
    "needle outside": (changed(needle_position=10), "needle_position holds 10, want [0, 10)"),
    "needle of floats": (changed(needle_position=1.0), "needle_position has dtype float64"),
    "pickled positions": (
        changed(query_positions=np.array([0, None, 2])),
        "array query_positions cannot be read",
    ),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_wrong_arrays_are_refused_in_one_line(tmp_path, case):
    arrays, fault = BAD_ARRAYS[case]
    assert fault_of(save(tmp_path, arrays)).startswith(fault)


def test_saved_bfloat16_is_refused_since_the_format_forgets_it(tmp_path):
    arrays = changed(k=np.zeros((10, 2, 16), ml_dtypes.bfloat16))
    assert fault_of(save(tmp_path, arrays)).startswith("array k has dtype |V2, want a float dtype")


def capture_of(queries=7, tokens=20, **fields):
    """Return a capture of random tensors."""
    t = tensors(queries=queries, tokens=tokens)
    return Capture(t["q"], t["k"], t["v"], **fields)


@pytest.mark.parametrize(
    "batch_size, chosen", [(1, [0]), (2, [0, 3]), (3, [0, 2, 4]), (7, range(7)), (50, range(7))]
)
def test_queries_are_chosen_evenly_and_never_twice(batch_size, chosen):
    capture = capture_of()
    workload = CapturedWorkload(capture, batch_size)
    assert np.array_equal(workload.queries, capture.queries[list(chosen)])
    assert workload.context_tokens.tolist() == [20] * len(chosen)
    assert workload.context_tokens.dtype == np.int64
    assert workload.needle_pages is None


def test_a_request_sees_the_tokens_up_to_its_query():
    capture = capture_of(queries=3, query_positions=np.array([0, 19, 6]))
    workload = CapturedWorkload(capture, 3)
    assert workload.context_tokens.tolist() == [1, 20, 7]
    for request, tokens in enumerate([1, 20, 7]):
        keys, values = zip(*workload.chunks(request, 6), strict=True)
        assert all(1 <= len(part) <= 6 for part in keys)
        assert np.array_equal(np.concatenate(keys), capture.keys[:tokens])
        assert np.array_equal(np.concatenate(values), capture.values[:tokens])


def test_needles_become_pages_and_one_in_the_future_is_none():
    positions = {"query_positions": np.array([19, 5, 19]), "needle_positions": np.array([8, 6, 7])}
    capture = capture_of(queries=3, **positions)
    workload = CapturedWorkload(capture, 3, page_size=4)
    assert [pages.tolist() for pages in workload.needle_pages] == [[2], [], [1]]
    assert CapturedWorkload(capture, 3).needle_pages is None
    assert [p.tolist() for p in CapturedWorkload(capture, 1, page_size=16).needle_pages] == [[0]]


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="batch_size"):
        CapturedWorkload(capture_of(), 0)
    with pytest.raises(ValueError, match="page_size"):
        CapturedWorkload(capture_of(), 1, page_size=0)
    workload = CapturedWorkload(capture_of(), 2)
    for request, max_tokens in ((2, 4), (-1, 4), (0, 0)):
        with pytest.raises(ValueError, match="request_index|max_tokens"):
            workload.chunks(request, max_tokens)


@pytest.mark.skipif(not CAPTURES.is_dir(), reason="the captured tensors are not on this machine")
@pytest.mark.parametrize("name, layer, heads", [("minilm_512", 3, 12), ("needle_lm_4k", 0, 4)])
def test_real_captures_load(name, layer, heads):
    capture = load_capture(CAPTURES / f"{name}.npz", layer)
    workload = CapturedWorkload(capture, 4, page_size=16)
    assert capture.layer == layer and workload.queries.shape == (4, heads, 32)
    assert (workload.needle_pages is None) == (name == "minilm_512")
    last_tokens = capture.query_positions
    if last_tokens is not None:
        assert workload.context_tokens[0] == last_tokens[0] + 1
