"""What must agree across the repository: the public address, versions, lock and targets."""

import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from notebook_form import notebooks
from packaging.requirements import Requirement
from retarget import AFTER, BEFORE, address, main, retarget
from tree import ROOT, copy, git, texts

import attention_lib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def lock_lines() -> list[str]:
    """The lock without comments."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


# The public address.


def addresses(root: Path) -> dict[str, set[str]]:
    """For every file, the addresses in it that end in the repository's name."""
    name = re.escape(address(root)[1])
    pattern = re.compile(
        rf"{BEFORE}([\w.-]+)/({name}){AFTER}|https://([\w-]+)\.github\.io/({name})"
    )
    found: dict[str, set[str]] = {}
    for path, text in texts(root).items():
        for _, owner, code, host, pages in pattern.findall(text):
            entry = f"{owner or host}/{code or pages}"
            found.setdefault(str(path.relative_to(root)), set()).add(entry)
    return found


def test_the_public_address_is_the_same_everywhere():
    found = addresses(ROOT)
    assert {entry for entries in found.values() for entry in entries} == {"/".join(address())}
    needed = {"pyproject.toml", "_config.yml", "README.md", "CITATION.cff", "CONTRIBUTING.md"}
    assert (needed | {str(path.relative_to(ROOT)) for path in notebooks()}) - set(found) == set()


def test_retargeting_reaches_every_place_and_can_be_undone(tmp_path: Path):
    copy(tmp_path)
    before = texts(tmp_path)
    old = address(tmp_path)
    places = addresses(tmp_path)
    changed = retarget("some-one", "another.book", tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in changed} == set(places)
    after = texts(tmp_path)
    assert [path for path, text in after.items() if "/".join(old) in text] == []
    assert {path: sorted(found) for path, found in addresses(tmp_path).items()} == {
        path: ["some-one/another.book"] for path in places
    }
    assert retarget("some-one", "another.book", tmp_path) == []
    retarget(*old, tmp_path)
    assert texts(tmp_path) == before


def test_retargeting_leaves_other_repositories_alone(tmp_path: Path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    owner, name = address()
    other = (
        f"https://github.com/{owner}/{name}-two https://github.com/x{owner}/{name} {owner}/{name}"
    )
    (tmp_path / "page.md").write_text(other)
    git("init", "--quiet", cwd=tmp_path)
    assert retarget("a", "b", tmp_path) == [tmp_path / "pyproject.toml"]
    assert (tmp_path / "page.md").read_text() == other


@pytest.mark.parametrize(
    "wrong", ["book", "a/b/c", "-a/b", "a--b/c", "a/b c", "a/b.git", "a/..", ""]
)
def test_retargeting_refuses_what_is_no_repository(wrong: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["retarget.py", "--", wrong])
    monkeypatch.setattr("retarget.retarget", lambda *_: pytest.fail("was not refused"))
    with pytest.raises(SystemExit):
        main()


# The lock and the versions.


def test_the_lock_ends_with_the_library_itself():
    assert lock_lines()[-1] == "-e ."
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lock_lines()[:-1])


def test_the_lock_satisfies_every_range():
    locked = {}
    for line in lock_lines()[:-1]:
        name, version = line.split("==")
        locked[re.sub(r"[-_.]+", "-", name).lower()] = version
    extras = PROJECT["optional-dependencies"]
    ranges = [*PROJECT["dependencies"], *extras["chapters"], *extras["book"], *extras["test"]]
    for requirement in map(Requirement, ranges):
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name in locked, f"{name} is not in the lock: run `make lock`"
        assert requirement.specifier.contains(locked[name]), f"{requirement} but {locked[name]}"


def test_the_version_is_the_same_everywhere():
    assert attention_lib.__version__ == PROJECT["version"] == CITATION["version"]


def test_the_citation_file_says_what_a_citation_needs():
    for key in ("cff-version", "message", "title", "authors", "license", "date-released"):
        assert CITATION[key], key
    assert CITATION["repository-code"] == PROJECT["urls"]["Repository"]


# Make targets are the one place for logic.


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_uses_targets_that_exist_and_pinned_actions(path: Path):
    workflow = yaml.safe_load(path.read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    called = {
        word for step in steps for word in re.findall(r"\bmake ([a-z-]+)", step.get("run", ""))
    }
    assert called
    assert called - make_targets() == set()
    assert all(re.search(r"@v\d+$", step["uses"]) for step in steps if "uses" in step)


def test_the_tools_that_targets_and_hooks_call_exist():
    text = (ROOT / "Makefile").read_text() + (ROOT / ".pre-commit-config.yaml").read_text()
    called = set(re.findall(r"tools/\w+\.py", text))
    assert called
    assert [name for name in called if not (ROOT / name).is_file()] == []


# Nothing of one machine.

OF_ONE_MACHINE = re.compile(
    r"(?<![\w./~-])/(?:(?:root|work)/|home/[a-z]|Users/[A-Za-z])\w|\bfile:///\w"
)


PICKLE = re.compile(
    r"\b(?:import|from) (?:pickle|cPickle|dill|joblib|shelve|marshal)\b"
    r"|\bpickle\.loads?\b|allow_pickle\s*=\s*True|(?<!safetensors\.)\btorch\.load\("
)


def test_nothing_is_loaded_with_pickle():
    found = {path.name for path, text in texts().items() if PICKLE.search(text)}
    assert found == {Path(__file__).name}  # the lines below


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("model = torch.load(path)", True),
        ("import pickle", True),
        ("np.load(file, allow_pickle=True)", True),
        ("p = safetensors.torch.load(data)", False),
        ("np.load(file)", False),
    ],
)
def test_a_pickle_is_recognised(line: str, found: bool):
    assert bool(PICKLE.search(line)) == found


def test_no_file_speaks_of_one_machine():
    found = {
        str(path.relative_to(ROOT)): match[0]
        for path, text in texts().items()
        if (match := OF_ONE_MACHINE.search(text))
    }
    assert found == {}


@pytest.mark.parametrize("top", ["root", "work", "home", "Users"])
def test_a_path_of_one_machine_is_recognised(top: str):
    assert OF_ONE_MACHINE.search(f"see /{top}/someone/book")
    assert not OF_ONE_MACHINE.search(f"see https://example.org/{top}/someone and ../{top}/someone")
