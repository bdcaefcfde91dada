"""What tests/test_triton.py runs in Triton's interpreter: each function is one case.

The interpreter must be chosen before Triton is imported, and the shape checks of the test run must
not touch a kernel. So the cases run in a process of their own, which prints what became of each.
"""

import json
import traceback
from functools import partial

import torch
from oracle import assert_matches, random
from torch.testing import assert_close

from attention_lib import attend, attend_explicit, causal
from attention_lib._checks import flatten_batch
from attention_lib.efficient.triton_attention import _kernels, _Triton, attend_triton

N, D = 3, 16
# Less than a tile, a whole tile, just above it, fewer and more queries than keys, and by one, so
# that the diagonal crosses the corners of the tiles.
LENGTHS = [(1, 1), (7, 7), (32, 32), (33, 33), (33, 65), (70, 40), (1, 67), (64, 65), (65, 64)]
MASKS = [None, causal()]


def _inputs(queries, keys, width=D, dtype=torch.float32, batch=(N,)):
    generator = torch.Generator().manual_seed(queries + keys)
    shapes = (queries, width), (keys, width), (keys, width)
    return [random(generator, *batch, *shape, dtype=dtype) for shape in shapes]


def _same(inputs, mask=None, ours=attend_triton, **options):
    """Output and gradients lie within the budget; the other side's softmax is in float32 too."""
    explicit = partial(attend, mask=mask, **options)
    assert_matches(partial(ours, mask=mask, **options), explicit, explicit, inputs)


def case_float32_and_all_gradients():
    for queries, keys in LENGTHS:
        for mask in MASKS:
            _same(_inputs(queries, keys), mask)


def case_float16_and_all_gradients():
    for queries, keys in [(7, 7), (129, 129), (150, 70), (70, 150)]:
        for mask in MASKS:
            _same(_inputs(queries, keys, dtype=torch.float16), mask)


def case_bfloat16_and_all_gradients():
    """The interpreter multiplies the bits of bfloat16 as integers; here they are widened first."""
    from triton.runtime.interpreter import InterpreterBuilder, tl

    def dot(self, a, b, *others):
        wide = (self.create_fp_ext(x, tl.float32) if x.dtype.is_bf16() else x for x in (a, b))
        return original(self, *wide, *others)

    def ours(query, key, value, mask):
        flat = (flatten_batch(x, (N,)).contiguous() for x in (query, key, value))
        return _Triton.apply(*flat, mask is not None, D**-0.5, _kernels(query.float()))

    original = InterpreterBuilder.create_dot
    InterpreterBuilder.create_dot = dot
    try:
        for queries, keys in [(7, 7), (150, 70), (70, 150)]:
            for mask in MASKS:
                _same(_inputs(queries, keys, dtype=torch.bfloat16), mask, ours)
    finally:
        InterpreterBuilder.create_dot = original


def case_every_width():
    for width in (32, 64, 128):
        for dtype in (torch.float16, torch.float32):
            _same(_inputs(37, 67, width, dtype), causal())


def case_a_factor_in_place_of_the_root():
    _same(_inputs(37, 67), causal(), scale=0.5)
    inputs = _inputs(5, 5)
    assert torch.equal(attend_triton(*inputs), attend_triton(*inputs, scale=0.25))


def case_leading_dimensions_broadcast_and_need_not_be_contiguous():
    query, _, _ = _inputs(35, 35, batch=(2, 3))
    _, key, value = _inputs(35, 35, batch=(3,))
    _same([query, key, value[:1]], causal())
    heads_last = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, query, query)]
    _same(heads_last, causal())
    _same([query[0, 0], key[0], value[0]])
    assert attend_triton(query, key, value).shape == (2, 3, 35, D)


def case_a_gradient_that_is_not_contiguous():
    inputs = [x.requires_grad_() for x in _inputs(35, 35)]
    weights = torch.arange(35.0)
    (attend_triton(*inputs).transpose(1, 2) * weights).sum().backward()
    found = [x.grad.clone() for x in inputs]
    for x in inputs:
        x.grad = None
    (attend(*inputs).transpose(1, 2) * weights).sum().backward()
    assert_close(found, [x.grad for x in inputs])


def case_by_hand():
    value = torch.arange(3.0)[:, None].expand(3, D)
    zeros = torch.zeros(3, D)
    assert_close(attend_triton(zeros, zeros, value)[:, 0], torch.ones(3))
    assert_close(attend_triton(zeros, zeros, value, causal())[:, 0], torch.tensor([0, 0.5, 1]))


def case_only_the_log_sum_exp_is_kept():
    inputs = [x.requires_grad_() for x in _inputs(70, 40)]
    output = attend_triton(*inputs, causal())
    query, key, _, kept, lse = _node(output).saved_tensors
    assert torch.equal(kept, output)
    assert (lse.shape, lse.dtype) == ((N, 70), torch.float32)
    scores = query @ key.mT / D**0.5
    scores = scores.masked_fill(~causal().dense(70, 40), float("-inf"))
    expected = scores.logsumexp(dim=-1)
    assert_close(lse[:, 30:], expected[:, 30:])
    # Rows 0 .. 29 see nothing: plus infinity, so that exp(score - lse) is 0.
    assert lse[:, :30].eq(float("inf")).all()


def _node(output):
    """The step of the graph that the kernels are; a view lies above it."""
    node = output.grad_fn
    while not hasattr(node, "settings"):
        node = node.next_functions[0][0]
    return node


def case_rows_without_keys_give_zero_and_gradient_zero():
    inputs = [x.requires_grad_() for x in _inputs(70, 40)]
    output = attend_triton(*inputs, causal())
    output.sum().backward()
    assert torch.equal(output[:, :30], torch.zeros(N, 30, D))
    assert torch.equal(inputs[0].grad[:, :30], torch.zeros(N, 30, D))
    assert all(x.grad.isfinite().all() for x in inputs)


def case_empty_tiles_are_never_read():
    """A number that is not one would spread if it were read: 0 times NaN is NaN."""
    query, key, value = _inputs(96, 96)
    expected = attend(query, key, value, causal())
    value[:, 64:] = float("nan")
    output = attend_triton(query, key, value, causal())
    assert_close(output[:, :64], expected[:, :64])
    assert output[:, 64:].isnan().all()


def case_empty_tiles_are_never_read_on_the_way_back():
    inputs = [x.requires_grad_() for x in _inputs(96, 96)]
    upstream = torch.ones(N, 96, D)
    expected = torch.autograd.grad(attend(*inputs, causal()), inputs, upstream)
    upstream[:, :32] = float("nan")  # the gradients of these queries reach keys 0 .. 31 only
    found = torch.autograd.grad(attend_triton(*inputs, causal()), inputs, upstream)
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours[:, 32:], theirs[:, 32:])
        assert ours[:, :32].isnan().all()


def case_empty_sequences():
    for batch, queries, keys in [((N,), 0, 5), ((N,), 5, 0), ((0,), 5, 5), ((N,), 0, 0)]:
        inputs = [x.requires_grad_() for x in _inputs(queries, keys, batch=batch)]
        output = attend_triton(*inputs, causal())
        output.sum().backward()
        assert torch.equal(output, torch.zeros(*batch, queries, D))
        assert all(torch.equal(x.grad, torch.zeros_like(x)) for x in inputs)


def case_half_precision_scores_beyond_its_range_stay_finite():
    query = torch.full((40, D), 200, dtype=torch.float16)  # the scores are 160,000
    value = torch.linspace(-1, 1, 40, dtype=torch.float16)[:, None].expand(40, D)
    output = attend_triton(query, query, value, causal())
    assert_close(output, attend_triton(torch.zeros_like(query), query, value, causal()))


def case_inputs_are_not_changed():
    inputs = [x.requires_grad_() for x in _inputs(35, 35)]
    copies = [x.detach().clone() for x in inputs]
    upstream = torch.ones(N, 35, D)
    attend_triton(*inputs).backward(upstream)
    assert all(torch.equal(*pair) for pair in zip(inputs, copies, strict=True))
    assert upstream.eq(1).all()


def case_a_second_derivative_is_refused():
    inputs = [x.requires_grad_() for x in _inputs(5, 5)]
    output = attend_triton(*inputs)
    (gradient,) = torch.autograd.grad(output.pow(2).sum(), inputs[:1], create_graph=True)
    message = ""
    try:
        gradient.sum().backward()
    except RuntimeError as error:
        message = str(error)
    assert "once_differentiable" in message


def case_bfloat16_is_refused_by_the_interpreter():
    message = ""
    try:
        attend_triton(*_inputs(5, 5, dtype=torch.bfloat16))
    except TypeError as error:
        message = str(error)
    assert message == (
        "query must be float16 or float32 in Triton's interpreter, which multiplies the bits of "
        "bfloat16 as integers, got torch.bfloat16"
    )


def case_explicit_attention_agrees():
    inputs = _inputs(33, 65)
    for mask in MASKS:
        assert_close(attend_triton(*inputs, mask), attend_explicit(*inputs, mask))


CASES = {name: case for name, case in globals().items() if name.startswith("case_")}


def main() -> None:
    """Run every case and print one line of JSON: name to traceback, empty where it passed."""
    torch.set_num_threads(1)
    found = {}
    for name, case in CASES.items():
        try:
            case()
            found[name] = ""
        except Exception:
            found[name] = traceback.format_exc()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
