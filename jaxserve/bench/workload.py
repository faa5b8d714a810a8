"""What a benchmark asks for: lengths of prompts and answers, and when each request is sent."""

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from jaxserve.request import SamplingParams


class RequestPlan(msgspec.Struct, frozen=True, array_like=True):
    """One request: tokens of its prompt, tokens of its answer, and seconds after the start at which it is sent."""

    input_len: int
    output_len: int
    arrival: float = 0.0


def read_trace(path: Path, scale: float = 1.0) -> list[RequestPlan]:
    """The requests of a trace file, with its lengths times `scale`, all sent at once."""
    pairs = json.loads(path.read_text())["requests"]
    return [RequestPlan(max(1, round(a * scale)), max(1, round(b * scale))) for a, b in pairs]


def poisson_arrivals(plans: Iterable[RequestPlan], rate: float, seconds: float, seed: int) -> list[RequestPlan]:
    """The first of the plans as a Poisson process sends them: times between requests are exponential.

    Args:
        plans: at least as many as the process needs; what is left over is not sent.
        rate: requests a second, on average.
        seconds: no request is sent later.
        seed: the same seed gives the same times.
    """
    rng = random.Random(seed)
    sent: list[RequestPlan] = []
    now = 0.0
    for plan in plans:
        now += rng.expovariate(rate)
        if now > seconds:
            break
        sent.append(RequestPlan(plan.input_len, plan.output_len, now))
    return sent


def random_prompts(plans: Sequence[RequestPlan], vocab_size: int, seed: int) -> list[list[int]]:
    """Prompts that share no prefix; ids from the upper half of the vocabulary, away from special tokens."""
    rng = random.Random(seed)
    ids = range(vocab_size // 2, vocab_size)
    return [rng.choices(ids, k=plan.input_len) for plan in plans]


def exact_length(plan: RequestPlan, detokenize: bool = False) -> SamplingParams:
    """Greedy, for exactly as many tokens as planned."""
    return SamplingParams(max_tokens=plan.output_len, temperature=0.0, ignore_eos=True, detokenize=detokenize)
