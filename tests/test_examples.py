"""The examples in the docstrings run and print what they say; every core function has one."""

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch

import attention_lib

# Modules whose public functions and classes a reader looks up; the rest draws, fetches or checks.
CORE = ("scores", "softmax", "masks", "attention", "positions", "heads", "blocks", "efficient",
        "sampling", "decoding", "losses", "text", "interpret", "interop")  # fmt: skip
# The GPU kernels need a GPU or Triton's interpreter: tests/test_triton.py runs them.
MODULES = [
    info.name
    for info in pkgutil.walk_packages(attention_lib.__path__, "attention_lib.")
    if info.name.split(".")[1] in CORE and "triton" not in info.name
]


def public(name: str) -> dict[str, object]:
    """What a module defines under a public name."""
    module = importlib.import_module(name)
    return {
        key: thing
        for key, thing in vars(module).items()
        if not key.startswith("_")
        and (inspect.isfunction(thing) or inspect.isclass(thing))
        and thing.__module__ == name
    }


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name: str):
    torch.set_printoptions(profile="default")
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
    assert result.attempted > 0 or not public(name)


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_an_example(name: str):
    without = [key for key, thing in public(name).items() if ">>>" not in (thing.__doc__ or "")]
    assert without == []
