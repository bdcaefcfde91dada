"""Argument checks shared by the numeric modules; each message names argument, rule and value."""

import math

import torch
from torch import Tensor


def shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape as a plain tuple, which prints as ``(2, 7)`` in messages."""
    return tuple(tensor.shape)


def check_float(name: str, tensor: Tensor, *, rank: int) -> None:
    """Require a floating-point tensor with at least ``rank`` dimensions."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must have a floating-point dtype, got {tensor.dtype}")
    if tensor.ndim < rank:
        raise ValueError(
            f"{name} must have at least {rank} dimension{'s' if rank > 1 else ''}, "
            f"got shape {shape(tensor)}"
        )


def check_like(name: str, tensor: Tensor, reference_name: str, reference: Tensor) -> None:
    """Require the dtype and the device of another argument."""
    if tensor.dtype != reference.dtype:
        raise TypeError(
            f"{name} must have the dtype of {reference_name} ({reference.dtype}), "
            f"got {tensor.dtype}"
        )
    _check_device(name, tensor, reference_name, reference)


def _check_device(name: str, tensor: Tensor, reference_name: str, reference: Tensor) -> None:
    if tensor.device != reference.device:
        raise ValueError(
            f"{name} must be on the device of {reference_name} ({reference.device}), "
            f"got {tensor.device}"
        )


def broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that all broadcast to; quick where they are equal, as they mostly are."""
    first = shapes[0]
    if all(other == first for other in shapes):
        return tuple(first)
    return tuple(torch.broadcast_shapes(*shapes))


def flatten_batch(tensor: Tensor, batch: tuple[int, ...]) -> Tensor:
    """Bring (..., T, D) to (N, T, D) with N the number of sequences, without a copy if it can."""
    length, width = tensor.shape[-2:]
    return tensor.expand(*batch, length, width).reshape(math.prod(batch), length, width)


def check_broadcast(name: str, tensor: Tensor, expected: tuple[int, ...], symbols: str) -> None:
    """Require a tensor that broadcasts to the shape ``expected`` without enlarging it."""
    sizes = zip(reversed(tensor.shape), reversed(expected), strict=False)
    fits = tensor.ndim <= len(expected) and all(size in (1, whole) for size, whole in sizes)
    if not fits:
        raise ValueError(f"{name} must broadcast to {symbols} = {expected}, got {shape(tensor)}")


def check_mask(mask: Tensor, expected: tuple[int, ...], symbols: str, scores: Tensor) -> None:
    """Require a boolean tensor that broadcasts to ``expected``, on the device of the scores."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a torch.Tensor, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be boolean with True for 'may attend', got {mask.dtype}")
    _check_device("mask", mask, "the scores", scores)
    check_broadcast("mask", mask, expected, symbols)


def check_batches(**tensors: Tensor) -> None:
    """Require the leading dimensions (all but the last two) to broadcast together."""
    try:
        broadcast(*(tensor.shape[:-2] for tensor in tensors.values()))
    except RuntimeError:
        found = ", ".join(f"{name} {shape(tensor)}" for name, tensor in tensors.items())
        raise ValueError(f"leading dimensions must broadcast together, got {found}") from None


def check_query_key(query: Tensor, key: Tensor, *, same_width: bool = True) -> None:
    """Require ``query`` (..., Tq, D) and ``key`` (..., Tk, D) that fit together."""
    check_float("query", query, rank=2)
    check_float("key", key, rank=2)
    check_like("key", key, "query", query)
    for name, tensor in (("query", query), ("key", key)):
        if tensor.shape[-1] == 0:
            raise ValueError(f"{name} must have a width of at least 1, got shape {shape(tensor)}")
    if same_width and query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"key must have the width of query, D = {query.shape[-1]}, got shape {shape(key)}"
        )
    check_batches(query=query, key=key)


def check_query_key_value(
    query: Tensor, key: Tensor, value: Tensor, *, same_width: bool = True
) -> None:
    """Require :func:`check_query_key`, and ``value`` (..., Tk, Dv) with one row for each key."""
    check_query_key(query, key, same_width=same_width)
    check_float("value", value, rank=2)
    check_like("value", value, "query", query)
    if value.shape[-2] != key.shape[-2]:
        raise ValueError(
            f"value must have one row for each key, Tk = {key.shape[-2]}, got shape {shape(value)}"
        )
    check_batches(query=query, key=key, value=value)


def check_count(name: str, number: int, *, least: int) -> None:
    """Require an integer of at least ``least``."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name} must be an integer, got {type(number).__name__}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")


def check_counts(*, least: int, **numbers: int) -> None:
    """Require integers of at least ``least``, by their names."""
    for name, number in numbers.items():
        check_count(name, number, least=least)


def check_divides(name: str, divisor: int, whole_name: str, whole: int) -> None:
    """Require a positive divisor of another argument."""
    check_count(name, divisor, least=1)
    if whole % divisor:
        raise ValueError(f"{name} must divide {whole_name} = {whole}, got {divisor}")


def check_fraction(name: str, number: float) -> None:
    """Require a number of at least 0 and below 1."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"{name} must be a number, got {type(number).__name__}")
    if not 0 <= number < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {number}")


def check_positive(name: str, number: float) -> None:
    """Require a number above zero that float32 can hold."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"{name} must be a number, got {type(number).__name__}")
    limits = torch.finfo(torch.float32)  # beyond these, float32 would make it 0 or infinite
    if not limits.tiny <= number <= limits.max:
        raise ValueError(
            f"{name} must be a finite number above 0, in the range of float32, got {number}"
        )


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """float32 for half-precision inputs, otherwise the input's own dtype."""
    return torch.promote_types(dtype, torch.float32)
