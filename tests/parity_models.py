"""The rows of the parity table for whole models; see :mod:`parity_cases`."""

from collections.abc import Callable

import torch
import twins
import twins_models
from oracle import measure, random
from parity_cases import BRAIN, SINGLE, Case, Pairs
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import relu
from twins_models import CHANNELS, CLASSES, DETR_WIDTH, IMAGE, LENGTH, QUERIES, TOKENS, Family

from attention_lib import FeedForward

BATCH, TIME = 2, 7


def _compare(
    family: Family,
    dtype: torch.dtype,
    generator: torch.Generator,
    inputs: list[Tensor],
    ours: Callable[..., Tensor],
    theirs: Callable[..., Tensor],
) -> Pairs:
    """Ours against theirs, both called as ``call(model, *inputs)``; theirs in float64 is exact.

    ``inputs`` have gradients too.
    """
    model, reference = family.ours(), family.theirs()
    model.train(False), reference.train(False)
    parameters = twins.parameters_of(model, generator, dtype)
    if any(block.activation is relu for block in model.modules() if isinstance(block, FeedForward)):
        parameters = twins.off_the_kink(parameters)
    names, count = list(parameters), len(inputs)

    def filled(module: nn.Module, translate: Callable, call: Callable) -> Callable[..., Tensor]:
        def run(*tensors: Tensor) -> Tensor:
            own = translate(dict(zip(names, tensors[count:], strict=True)))
            return call(
                lambda *x, **named: functional_call(module, own, x, named), *tensors[:count]
            )

        return run

    def loop(*tensors: Tensor) -> Tensor:
        reference.double()
        result = filled(reference, family.translate, theirs)(*tensors)
        reference.to(dtype)
        return result

    reference.to(dtype)
    return measure(
        filled(model, dict, ours),
        filled(reference, family.translate, theirs),
        loop,
        [*inputs, *parameters.values()],
        one_floor=True,
    )


def _tokens(generator: torch.Generator, length: int = TIME) -> Tensor:
    """Without token 0, whose embedding gets no gradient in Hugging Face's BERT."""
    return torch.randint(1, TOKENS, (BATCH, length), generator=generator)


def _decoder_only(family):
    def run(dtype, mask, generator):
        tokens = _tokens(generator, LENGTH)
        return _compare(
            family, dtype, generator, [],
            lambda model: model(tokens),
            lambda model: model(input_ids=tokens).logits,
        )  # fmt: skip

    return run


def _bert(dtype, mask, generator):
    tokens, lengths = _tokens(generator), torch.tensor([4, TIME])
    real = torch.arange(TIME) < lengths[:, None]
    return _compare(
        twins_models.BERT, dtype, generator, [],
        lambda model: model(tokens, lengths)[real],
        lambda model: model(input_ids=tokens, attention_mask=real.long()).logits[real],
    )  # fmt: skip


def _image(family, pick):
    def run(dtype, mask, generator):
        images = random(generator, BATCH, CHANNELS, IMAGE, IMAGE, dtype=dtype)
        return _compare(
            family, dtype, generator, [images],
            lambda model, x: model(x),
            lambda model, x: pick(model(pixel_values=x)),
        )  # fmt: skip

    return run


def _detr(dtype, mask, generator):
    shapes = (BATCH, TIME, DETR_WIDTH), (TIME, DETR_WIDTH), (QUERIES, DETR_WIDTH)
    inputs = [random(generator, *shape, dtype=dtype) for shape in shapes]
    return _compare(
        twins_models.DETR, dtype, generator, inputs,
        lambda model, *x: model(*x),
        lambda model, x, position, queries: model(x, position.expand(BATCH, -1, -1), queries),
    )  # fmt: skip


def _transformer(*, pre):
    def run(dtype, mask, generator):
        source, lengths = _tokens(generator), torch.tensor([4, TIME])
        target = torch.randint(CLASSES, (BATCH, 5), generator=generator)

        def call(model):
            return model(source, lengths, target)

        return _compare(twins_models.transformer_family(pre=pre), dtype, generator, [], call, call)

    return run


def _cases(component, reference, run, mask="none", dtypes=(SINGLE, BRAIN)):
    return [Case(component, reference, dtype, mask, run) for dtype in dtypes]


_FACE = "Hugging Face"
CASES = [
    *_cases("Transformer, original", "nn.Transformer", _transformer(pre=False), "causal, padding"),
    *_cases("Transformer, pre_norm", "nn.Transformer", _transformer(pre=True), "causal, padding"),
    *_cases("gpt2", f"{_FACE} GPT2LMHeadModel", _decoder_only(twins_models.GPT2), "causal"),
    *_cases("llama", f"{_FACE} LlamaForCausalLM", _decoder_only(twins_models.LLAMA), "causal"),
    *_cases("MaskedLM", f"{_FACE} BertForMaskedLM", _bert, "padding"),
    *_cases(
        "vit",
        f"{_FACE} ViTForImageClassification",
        _image(twins_models.VIT, lambda output: output.logits),
    ),
    *_cases(
        "dinov2",
        f"{_FACE} Dinov2Model",
        _image(twins_models.DINOV2, lambda output: output.pooler_output),
    ),
    *_cases("Detr, encoder and decoder", f"{_FACE} DetrEncoder and DetrDecoder", _detr),
]
