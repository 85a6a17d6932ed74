"""`dsd_bench --kv-file`: real tensors, their quality, and one line for every file that is wrong."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from numbadsd.cli.dsd_bench import command
from tests import oracle
from tests.cli.process import Ended, assert_complains, run_here, run_script

K, PAGE_SIZE = 4, 4
SINK_PAGES = RECENT_PAGES = 1
# k, at most two queries, unused contexts and seed, one iteration, no warm-up
START = [str(K), "2", "1", "1", "7", "1", "0"]
CPU_ONLY = ["--paths", "dense_cpu,sparse_cpu"]


def tensors(heads=6, kv_heads=3, head_dim=32, tokens=45, queries=2, seed=1):
    """Return q, k and v of a layer; some keys stand out, so that pages differ."""
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((queries, heads, head_dim), np.float32)
    k, v = rng.standard_normal((2, tokens, kv_heads, head_dim), np.float32)
    k[rng.integers(0, tokens, 6)] *= 3
    return {"q": q, "k": k, "v": v}


@pytest.fixture
def save(tmp_path):
    """Return a function that writes arrays to a file and returns its path."""

    def write(arrays):
        path = tmp_path / "capture.npz"
        np.savez(path, **arrays)
        return path

    return write


def shaped_as(arrays, page_size=PAGE_SIZE):
    """Return the last positional arguments, with the shape of the arrays."""
    return [str(arrays["q"].shape[1]), str(arrays["q"].shape[2]), str(page_size)]


def slow_quality(arrays, share, summary):
    """Compute the quality of a selection token by token, in float64, from the definitions."""
    means = {name: [] for name in ("recall", "mass", "candidate", "error", "density")}
    scale = arrays["q"].shape[2] ** -0.5
    group = arrays["q"].shape[1] // arrays["k"].shape[1]
    for index, query in enumerate(arrays["q"].astype(np.float64)):
        context = len(arrays["k"])
        if "query_positions" in arrays:
            context = int(arrays["query_positions"][index]) + 1
        keys, values = (arrays[name][:context].astype(np.float64) for name in "kv")
        dense, _ = oracle.attention(query, keys, values, scale)
        sparse, _, selected, _ = oracle.sparse_decode(
            query, keys, values, page_size=PAGE_SIZE, top_k_pages=K, summary=summary, share=share,
            sm_scale=scale, num_sink_pages=SINK_PAGES, num_recent_pages=RECENT_PAGES,
        )  # fmt: skip
        pages = -(-context // PAGE_SIZE)
        forced = {0, pages - 1}
        for head in range(len(query)):
            chosen = {int(p) for p in selected[head * len(selected) // len(query)] if p >= 0}
            weights = np.exp(keys[:, head // group] @ query[head] * scale)
            weights /= weights.sum()
            mass = [weights[p * PAGE_SIZE : (p + 1) * PAGE_SIZE].sum() for p in range(pages)]
            best = set(sorted(range(pages), key=lambda p: -mass[p])[:K])
            tokens = sum(min(PAGE_SIZE, context - p * PAGE_SIZE) for p in chosen)
            means["recall"].append(len(chosen & best) / len(best))
            means["mass"].append(sum(mass[p] for p in chosen))
            means["candidate"].append(sum(mass[p] for p in chosen - forced))
            error = np.linalg.norm(sparse[head] - dense[head]) / np.linalg.norm(dense[head])
            means["error"].append(error)
            means["density"].append(tokens / context)
    return {name: float(np.mean(values)) for name, values in means.items()}


@pytest.mark.parametrize("cut", [False, True], ids=["all tokens", "query_positions"])
@pytest.mark.parametrize(
    ("share", "summary"), [("request", "mean"), ("kv_head", "minmax"), ("query_head", "mean_std")]
)
def test_the_quality_of_a_file_is_what_the_definitions_give(invoke, save, share, summary, cut):
    arrays = tensors()
    if cut:
        arrays["query_positions"] = np.array([22, 43])
    options = ["--share", share, "--summary", summary, "--sink-pages", "1", "--recent-pages", "1"]
    arguments = [*START, *shaped_as(arrays), *options, *CPU_ONLY, "--kv-file", save(arrays)]
    output, record = invoke(*arguments)
    expected, quality = slow_quality(arrays, share, summary), record["quality"]
    assert quality["page_recall"] == pytest.approx(expected["recall"], rel=1e-6)
    assert quality["attention_mass"] == pytest.approx(expected["mass"], rel=1e-5)
    assert quality["candidate_mass"] == pytest.approx(expected["candidate"], rel=1e-5)
    assert quality["output_relative_error"] == pytest.approx(expected["error"], rel=1e-4)
    assert quality["density"] == pytest.approx(expected["density"], rel=1e-6)
    section = output.split("== Quality ==")[1].split("==")[0]
    for name, value in quality.items():
        if value is not None:
            assert re.search(rf"^{name} +{value:.4f} ", section, re.MULTILINE)


def test_the_shape_comes_from_the_file(invoke, save):
    path = save(tensors())
    _, record = invoke(*START, *CPU_ONLY, "--kv-file", path)
    model = record["config"]["model"]
    assert (model["num_heads"], model["num_kv_heads"], model["head_dim"]) == (6, 3, 32)
    assert record["data"]["min_context_tokens"] == record["data"]["max_context_tokens"] == 45
    assert record["config"]["kv_file"] == str(path) and record["config"]["layer"] is None


def test_the_report_names_the_file(invoke, save):
    path = save(tensors())
    output, _ = invoke(*START, *CPU_ONLY, "--kv-file", path)
    assert str(path) in output.split("== Analytical")[0]


def test_batch_size_is_the_most_queries_that_are_taken(invoke, save):
    path = save(tensors(queries=5))
    assert invoke(*START, *CPU_ONLY, "--kv-file", path)[1]["data"]["requests"] == 2
    more = [START[0], "9", *START[2:]]
    assert invoke(*more, *CPU_ONLY, "--kv-file", path)[1]["data"]["requests"] == 5


def test_the_lowest_layer_is_read_unless_another_is_named(invoke, save):
    layers = {f"layer{n}.{name}": a for n in (3, 1) for name, a in tensors(seed=n).items()}
    path = save(layers)
    assert invoke(*START, *CPU_ONLY, "--kv-file", path)[1]["config"]["layer"] == 1
    _, record = invoke(*START, *CPU_ONLY, "--kv-file", path, "--layer", 3)
    assert record["config"]["layer"] == 3
    accuracy = record["accuracy"]
    path = save(tensors(seed=3))
    assert invoke(*START, *CPU_ONLY, "--kv-file", path)[1]["accuracy"] == accuracy


def test_a_shape_that_agrees_with_the_file_is_accepted(invoke, save):
    path = save(tensors())
    _, record = invoke(*START, "6", "32", *CPU_ONLY, "--num-kv-heads", 3, "--kv-file", path)
    assert record["config"]["model"]["num_kv_heads"] == 3


def test_kv_heads_that_agree_with_the_file_need_no_heads_beside_them(invoke, save):
    # 3 does not divide the default of 8 heads, which the file overrules
    path = save(tensors())
    _, record = invoke(*START, *CPU_ONLY, "--num-kv-heads", 3, "--kv-file", path)
    assert record["config"]["model"]["num_kv_heads"] == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["4"], ["num_heads", "4", "6"]),
        (["6", "64"], ["head_dim", "64", "32"]),
        (["6", "32", "--num-kv-heads", "2"], ["num_kv_heads", "2", "3"]),
        (["--data", "uniform"], ["--data", "--kv-file"]),
        (["--layer", "0"], ["layer 0"]),
        (["--layer", "-1"], ["layer -1"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_what_the_file_contradicts_is_refused(capsys, save, arguments, words):
    path = save(tensors())
    assert_complains(run_here(command, [*START, *arguments, "--kv-file", path], capsys), *words)


def without(name):
    """Return a change that leaves an array out."""
    return lambda arrays: arrays.pop(name)


def with_shape(name, *shape):
    """Return a change that gives an array another shape."""
    return lambda arrays: arrays.update({name: np.ones(shape, np.float32)})


def with_nan(arrays):
    """Put one NaN among the keys."""
    arrays["k"][3, 1, 2] = np.nan


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("q"), ["q"]),
        (without("k"), ["k"]),
        (without("v"), ["v"]),
        (with_shape("v", 44, 3, 32), ["v", "44"]),
        (with_shape("k", 45, 3, 16), ["k"]),
        (with_shape("q", 2, 7, 32), ["7", "3"]),
        (with_shape("q", 2, 6), ["q", "(2, 6)"]),
        (with_shape("q", 0, 6, 32), ["q", "empty"]),
        (with_nan, ["k", "NaN"]),
        (lambda arrays: arrays.update(q=np.ones((2, 6, 32), np.int64)), ["q", "int64"]),
        (lambda arrays: arrays.update(tensors(head_dim=24)), ["head_dim", "24"]),
        (lambda arrays: arrays.update(query_positions=np.array([3, 99])), ["99"]),
    ],
)
def test_tensors_that_are_wrong_are_refused(capsys, save, change, words):
    arrays = tensors()
    change(arrays)
    path = save(arrays)
    assert_complains(run_here(command, [*START, "--kv-file", path], capsys), path, *words)


@pytest.mark.parametrize(
    "content",
    [b"", b"not an archive", b"PK\x03\x04", b"\x93NUMPY", bytes(2000)],
    ids=["empty", "text", "first bytes", "npy", "zeros"],
)
def test_a_file_that_is_no_npz_is_refused(capsys, tmp_path, content):
    path = tmp_path / "capture.npz"
    path.write_bytes(content)
    assert_complains(run_here(command, [*START, "--kv-file", path], capsys), path)


@pytest.mark.parametrize("share_kept", [0.05, 0.5, 0.95, 0.999])
def test_a_truncated_file_is_refused(capsys, save, share_kept):
    path = save(tensors())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share_kept)])
    assert_complains(run_here(command, [*START, "--kv-file", path], capsys), path)


def test_a_file_with_flipped_bytes_is_refused(capsys, save):
    path = save(tensors())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert_complains(run_here(command, [*START, "--kv-file", path], capsys), path)


def test_a_missing_file_and_a_folder_are_refused(capsys, tmp_path):
    for path in (tmp_path / "missing.npz", tmp_path):
        assert_complains(run_here(command, [*START, "--kv-file", path], capsys), path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    keep_open = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # so that opening it for reading returns
    os.write(keep_open, b"PK\x03\x04")
    try:
        assert_complains(run_script("dsd_bench", *START, "--kv-file", str(path)), path)
    finally:
        os.close(keep_open)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="there is no /dev/zero")
def test_a_device_is_refused_before_it_fills_the_memory():
    code = (
        "import resource; limit = 4 << 30; resource.setrlimit(resource.RLIMIT_AS, (limit, limit))"
    )
    code += "; from numbadsd.cli.dsd_bench import main; main()"
    process = subprocess.run(
        [sys.executable, "-c", code, *START, "--kv-file", "/dev/zero"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    ended = Ended(process.returncode, process.stdout, process.stderr)
    assert_complains(ended, "/dev/zero")
