"""What all tests share: fixed randomness, few threads, and a switch for the shape checks."""

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

import hypothesis
import jaxtyping
import numpy
import pytest
import torch

if TYPE_CHECKING:
    from playwright.sync_api import Page

# The same examples on every run and machine; slow machines do not fail a test by being slow.
hypothesis.settings.register_profile("book", derandomize=True, deadline=None)
hypothesis.settings.load_profile("book")

# Small tensors: more threads cost more than they give, and parallel test runs share the cores.
torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded source of random numbers, new for each test."""
    return torch.Generator().manual_seed(20250101)


@pytest.fixture
def no_shape_hook() -> Iterator[None]:
    """Turn the shape checks off, so that the library's own error messages are reached."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def global_random_state() -> Iterator[None]:
    """Start every test from one global state and put the old one back: no test feels another."""
    python, array, tensor = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
    yield
    random.setstate(python)
    numpy.random.set_state(array)
    torch.set_rng_state(tensor)


@pytest.fixture(scope="module")
def blank_page() -> Iterator["Page"]:
    """An empty page of a headless browser, for what runs in a page."""
    from browser import chromium

    with chromium() as browser:
        yield browser.new_page(viewport={"width": 800, "height": 700})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the claims first, the long chapters before the short: parallel runs then end together."""
    first = [item for item in items if item.path.name == "test_claims.py"]
    items[:] = first[::-1] + [item for item in items if item.path.name != "test_claims.py"]
