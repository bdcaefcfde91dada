"""How fast does SmolLM2 write, in our class and in Hugging Face's? Prints and records the ratio.

Run: python benchmarks/generation.py. Both have the same float32 weights and write the same tokens,
greedily, on one thread, in turns, in one process. Needs the extra ``test`` of the package.
"""

import json
import statistics
import sys
import time
from datetime import date
from pathlib import Path

import torch
import transformers
from words import machine

from attention_lib.models import smollm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import twins_models  # noqa: E402  # the same twin as in the tests

RESULT = ROOT / "attention_lib" / "weights" / "smollm2_generation.json"
QUESTION = "What is attention in a neural network?"
TOKENS, REPEATS = 64, 15


def main() -> None:
    """Time both in turns, print every repeat, write the medians."""
    torch.set_num_threads(1)
    chatter = smollm.load()
    reference = twins_models.smollm(chatter.model)
    prompt = chatter.prompt(QUESTION)

    def ours() -> list[int]:
        return chatter.write(prompt, TOKENS)

    def theirs() -> list[int]:
        given = torch.tensor([prompt])
        every = torch.ones_like(given)
        written = reference.generate(
            given, attention_mask=every, max_new_tokens=TOKENS, do_sample=False
        )
        return written[0, len(prompt) :].tolist()

    if ours() != theirs():
        raise SystemExit("the two write different tokens")
    rates = {"ours": [], "theirs": []}
    for _ in range(REPEATS):
        for name, write in (("ours", ours), ("theirs", theirs)):
            start = time.perf_counter()
            count = len(write())
            rates[name].append(count / (time.perf_counter() - start))
        print(f"tokens a second: {rates['ours'][-1]:.1f} and {rates['theirs'][-1]:.1f}")
    medians = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    ratios = [a / b for a, b in zip(rates["ours"], rates["theirs"], strict=True)]
    record = {
        "tokens_a_second": medians,
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in sorted(ratios)],
        "prompt_tokens": len(prompt),
        "new_tokens": len(ours()),
        "threads": 1,
        "command": "python benchmarks/generation.py",
        "machine": machine(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "date": str(date.today()),
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    print(f"median ratio {record['ratio']}, written to {RESULT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
