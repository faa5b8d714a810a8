#!/usr/bin/env python3
"""Whether greedy tokens in float32 are those recorded from the original implementations, on this machine's devices.

    python scripts/check_tokens.py                             # six kinds of models
    python scripts/check_tokens.py --tp 2 gqa olmo2 gemma2     # over two devices

Each checkpoint of tests/data that is named runs twice: with pages enough and whole prompts in a step, and with chunks
of prompts and so few pages that sequences are preempted. Exits with 1 if a token differs.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.support.recorded_models import (  # noqa: E402
    CASES,
    Recording,
    generate_checked,
    greedy_params,
    recorded_llm,
)

# Grouped queries, soft caps and windows, ALiBi, routed experts, a window in all layers, norms of heads.
KINDS = ("gqa", "gemma2", "baichuan2_13b", "qwen3_moe", "mistral_window", "qwen3")
SETTINGS = (
    {"max_num_batched_tokens": 67, "num_pages": 64},
    {"max_num_batched_tokens": 8, "num_pages": 24},
)


def main() -> int:
    """Read the command line, run, print a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=list(KINDS), help=f"of: {', '.join(CASES)}")
    parser.add_argument("--tp", type=int, default=1, help="devices that each hold a part of every layer (default: 1)")
    args = parser.parse_args()
    if unknown := sorted(set(args.cases) - set(CASES)):
        parser.error(f"no checkpoint is recorded of {', '.join(unknown)}; there are: {', '.join(CASES)}")
    # On a GPU products of float32 would be rounded to TF32.
    jax.config.update("jax_default_matmul_precision", "highest")
    differ = 0
    with tempfile.TemporaryDirectory() as cache:
        for case in args.cases:
            recording = Recording.of(case)
            for settings in SETTINGS:
                llm = recorded_llm(case, Path(cache), tensor_parallel_size=args.tp, **settings)
                answers = generate_checked(llm, recording.prompts, greedy_params())
                pairs = [
                    pair for both in zip(answers, recording.greedy, strict=True) for pair in zip(*both, strict=True)
                ]
                equal = sum(got == wanted for got, wanted in pairs)
                differ += len(pairs) - equal
                preempted = llm.core.stats().num_preemptions
                result = {"case": case, "tp": args.tp, **settings, "equal": equal, "of": len(pairs)}
                print(json.dumps({**result, "preempted": preempted, "device": llm.info.device_kind}), flush=True)
    return 1 if differ else 0


if __name__ == "__main__":
    raise SystemExit(main())
