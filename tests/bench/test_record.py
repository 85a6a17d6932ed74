"""The record: what it was measured on, and a file that is whole or absent."""

import json
import os
import stat
import sys
from datetime import datetime, timedelta, timezone

import numba
import numpy as np
import pytest

import numbadsd
from numbadsd.bench import record as record_module
from numbadsd.bench.record import SCHEMA_VERSION, check_writable, environment, write_record

ENVIRONMENT_KEYS = (
    "cpu num_threads gpu driver python numba numba_cuda numpy llvmlite commit dirty timestamp"
).split()


def read(path):
    """Return the record in a file, which must be one line of strict JSON."""
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n") and text.count("\n") == 1
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_the_environment_has_every_key_of_the_record():
    assert set(ENVIRONMENT_KEYS) <= set(environment())


def test_the_environment_names_this_machine_and_these_versions():
    found = environment()
    assert found["num_threads"] == numba.get_num_threads()
    assert found["numba"] == numba.__version__ and found["numpy"] == np.__version__
    assert found["python"] == sys.version.split()[0].rstrip("+")
    assert found["numbadsd"] == numbadsd.__version__
    assert found["cpu"] and found["llvmlite"]
    assert json.loads(json.dumps(found)) == found


def test_the_timestamp_is_now_with_a_zone():
    stamp = datetime.fromisoformat(environment()["timestamp"])
    assert abs(datetime.now(timezone.utc) - stamp) < timedelta(minutes=1)


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    assert record_module._version("no-such-package-as-this") is None


def test_there_is_no_commit_outside_a_checkout(monkeypatch, tmp_path):
    package = tmp_path / "numbadsd"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.setattr(numbadsd, "__file__", str(package / "__init__.py"))
    found = environment()
    assert found["commit"] is None and found["dirty"] is None


def test_there_is_no_commit_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = environment()
    assert found["commit"] is None and found["dirty"] is None


def test_a_commit_is_a_full_hash_and_comes_with_its_dirtiness():
    found = environment()
    if found["commit"] is None:
        pytest.skip("the tests run outside a checkout")
    assert len(found["commit"]) == 40 and set(found["commit"]) <= set("0123456789abcdef")
    assert found["dirty"] in (True, False)


def test_a_record_is_one_line_of_json(tmp_path):
    write_record({"a": [1, 2.5, None, "ü"], "b": {"c": True}}, tmp_path / "r.json")
    assert read(tmp_path / "r.json") == {"a": [1, 2.5, None, "ü"], "b": {"c": True}}


def test_what_json_has_no_word_for_is_null(tmp_path):
    values = {"nan": float("nan"), "list": [float("inf"), {"deep": (float("-inf"), 1.0)}]}
    values["numpy"] = np.float64("nan")
    write_record(values, tmp_path / "r.json")
    assert read(tmp_path / "r.json") == {"nan": None, "list": [None, {"deep": [None, 1.0]}]} | {
        "numpy": None
    }


def test_a_new_record_replaces_the_old_one(tmp_path):
    path = tmp_path / "r.json"
    write_record({"value": 1}, path)
    write_record({"value": 2}, path)
    assert read(path) == {"value": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize("old", [None, "the old record\n"])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, old):
    path = tmp_path / "r.json"
    if old is not None:
        path.write_text(old)
    with pytest.raises(TypeError):
        write_record({"fine": 1, "not json": object()}, path)
    assert {file.name for file in tmp_path.iterdir()} == ({"r.json"} if old else set())
    assert old is None or path.read_text() == old


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_is_stopped_leaves_what_was_there(tmp_path, monkeypatch, error):
    path = tmp_path / "r.json"
    path.write_text("the old record\n")

    def fail(*arguments):
        raise error

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(type(error)):
        write_record({"value": 1}, path)
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]
    assert path.read_text() == "the old record\n"


def test_others_may_read_a_record(tmp_path):
    write_record({}, tmp_path / "r.json")
    mode = stat.S_IMODE((tmp_path / "r.json").stat().st_mode)
    assert mode & 0o600 == 0o600 and not mode & 0o133


def test_checking_a_path_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "r.json")
    assert not list(tmp_path.iterdir())
    (tmp_path / "old.json").write_text("old")
    check_writable(tmp_path / "old.json")
    assert (tmp_path / "old.json").read_text() == "old"


def test_a_folder_and_a_missing_folder_cannot_be_written(tmp_path):
    with pytest.raises(IsADirectoryError):
        check_writable(tmp_path)
    with pytest.raises(FileNotFoundError):
        check_writable(tmp_path / "missing" / "r.json")
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        check_writable(tmp_path / "file" / "r.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        check_writable(tmp_path / "r.json")
    tmp_path.chmod(0o700)


def test_a_device_or_a_pipe_is_refused_before_it_would_be_replaced(tmp_path):
    # Renaming a file over /dev/null, which root may do, breaks the whole machine.
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError):
        check_writable(tmp_path / "pipe")


def test_the_schema_has_a_version():
    assert SCHEMA_VERSION == 1
