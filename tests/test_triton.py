"""The Triton kernels in Triton's interpreter and compiler, and what is refused without a GPU.

Without Triton, what needs it is skipped; nothing here needs a GPU. The numbers on a real GPU are
checked by ``benchmarks/triton_attention.py`` before it measures.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from oracle import TK, TQ
from triton_cases import CASES

import attention_lib.efficient
from attention_lib import causal, sliding_window
from attention_lib.efficient.triton_attention import attend_triton

TESTS = Path(__file__).resolve().parent
D = 16
FOUND = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not FOUND, reason="Triton is not installed")
query, key, value = torch.ones(TQ, D), torch.ones(TK, D), torch.ones(TK, D)


def _run(*arguments: str, **environment: str) -> str:
    """Run Python beside the tests, with the path of this process and some more environment."""
    path = os.pathsep.join(entry for entry in [str(TESTS), *sys.path] if entry)
    run = subprocess.run(
        [sys.executable, *arguments],
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


# --- numbers, in the interpreter -----------------------------------------------------------------


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    """What became of every case of triton_cases.py: a traceback, or nothing where it passed."""
    return json.loads(_run(str(TESTS / "triton_cases.py"), TRITON_INTERPRET="1"))


@needs_triton
@pytest.mark.oracle
@pytest.mark.parametrize("name", CASES)
def test_in_the_interpreter(name, outcomes):
    assert outcomes[name] == ""


# --- the compiler --------------------------------------------------------------------------------

COMPILE = """
import json, sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from attention_lib.efficient import triton_attention, triton_kernels

KINDS = {"lse": "*fp32", "delta": "*fp32", "scale": "fp32", "queries": "i32", "keys": "i32"}
NAMES = {"forward": "_forward_kernel", "keys": "_key_kernel", "queries": "_query_kernel"}
width = int(sys.argv[1])
query = torch.empty(1, 1, width, dtype=torch.bfloat16)
found = {}
for name, function in NAMES.items():
    kernel = getattr(triton_kernels, function)
    options = triton_attention._tiles(name, query)
    known = {"CAUSAL": True, "PRECISION": triton_attention._precision(query), "D": width}
    known |= {side: options.pop(side) for side in ("BLOCK_Q", "BLOCK_K")}
    names = kernel.arg_names
    kinds = {n: "constexpr" if n in known else KINDS.get(n, "*bf16") for n in names}
    source = ASTSource(kernel, kinds, {(names.index(n),): known[n] for n in known})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    found[name] = [compiled.metadata.shared, ".bf16.bf16" in compiled.asm["ptx"]]
print(json.dumps(found))
"""


@needs_triton
@pytest.mark.parametrize("width", [64, 128])
def test_every_kernel_compiles_for_a_gpu_and_uses_its_matrix_units(width):
    found = json.loads(_run("-c", COMPILE, str(width), TRITON_INTERPRET="0"))
    assert set(found) == {"forward", "keys", "queries"}
    for shared, tensor_cores in found.values():
        assert 0 < shared <= 163 * 1024  # the fast memory of a program on an A100; an H100 has more
        assert tensor_cores


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.hostile
@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"query": [1]}, TypeError, "query must be a torch.Tensor, got list"),
        (
            {"query": query.double(), "key": key.double(), "value": value.double()},
            TypeError,
            "query must be float16, bfloat16 or float32, got torch.float64",
        ),
        (
            {"query": query[:, :8], "key": key[:, :8], "value": value[:, :8]},
            ValueError,
            f"query must have a width of 16, 32, 64 or 128, got shape ({TQ}, 8)",
        ),
        (
            {"query": query.repeat(1, 16), "key": key.repeat(1, 16), "value": value},
            ValueError,
            f"query must have a width of 16, 32, 64 or 128, got shape ({TQ}, 256)",
        ),
        (
            {"value": value.repeat(1, 2)},
            ValueError,
            f"value must be as wide as key, D = {D}, got shape ({TK}, 32)",
        ),
        (
            {"value": torch.ones(TK + 1, D)},
            ValueError,
            f"value must have one row for each key, Tk = {TK}, got shape ({TK + 1}, {D})",
        ),
        (
            {"mask": sliding_window(2)},
            ValueError,
            "mask must be None or causal(), got window(2, 0)",
        ),
        (
            {"mask": torch.ones(TQ, TK) > 0},
            ValueError,
            "mask must be None or causal(), got Tensor",
        ),
    ],
)
def test_a_bad_argument_is_named(change, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        attend_triton(**{"query": query, "key": key, "value": value, **change})


@pytest.mark.hostile
@pytest.mark.parametrize("width", [16, 32, 64, 128])
@pytest.mark.parametrize("mask", [None, causal()])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_without_triton_the_error_says_what_to_install(width, mask, dtype, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)  # importing it raises ImportError
    monkeypatch.delitem(sys.modules, "attention_lib.efficient.triton_kernels", raising=False)
    monkeypatch.delattr(attention_lib.efficient, "triton_kernels", raising=False)
    inputs = [torch.ones(length, width, dtype=dtype) for length in (TQ, TK, TK)]
    with pytest.raises(ImportError, match="attend_triton needs Triton, which comes with PyTorch"):
        attend_triton(*inputs, mask)


ON_CPU = """
import torch
from attention_lib.efficient.triton_attention import attend_triton
try:
    attend_triton(*(torch.ones(3, 16) for _ in range(3)))
except ValueError as error:
    print(error)
"""


@needs_triton
@pytest.mark.hostile
def test_without_a_gpu_the_error_says_where_the_tensors_are():
    message = _run("-c", ON_CPU, TRITON_INTERPRET="0").strip()
    assert message == "query must be on a CUDA device, got cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_gpu_the_benchmark_measures_and_writes_nothing(tmp_path):
    target = tmp_path / "triton.json"
    run = subprocess.run(
        [sys.executable, "benchmarks/triton_attention.py", "--write", target],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert "no GPU is at hand: nothing is measured and nothing is written" in run.stderr
    assert not target.exists()


def test_importing_attend_triton_does_not_import_triton():
    code = (
        "import sys, attention_lib.efficient.triton_attention; "
        "print('attention_lib.efficient.triton_kernels' in sys.modules)"
    )
    assert _run("-c", code).strip() == "False"
