"""The recorded checkpoints as the engine runs them: prompts, greedy continuations, a runner that keeps its plans."""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxserve import LLM, RequestOutput, SamplingParams
from jaxserve.models.registry import load_config
from jaxserve.request import RequestUpdate
from jaxserve.step import Runner, StepHandle, StepPlan

DATA = Path(__file__).parents[1] / "data"
# Llama and Mistral without a window: every kind of heads, biases and rope scaling, which need no module of their own.
LLAMA_CASES = (
    "gqa",
    "mqa",
    "mha",
    "tied",
    "bias",
    "rope_linear",
    "rope_dynamic",
    "rope_llama3",
    "rope_yarn",
    "sharded",
    "mistral",
)
CASES = tuple(path.parent.name for path in sorted(DATA.glob("*/reference.npz")))
FAMILY_CASES = tuple(case for case in CASES if case not in LLAMA_CASES)
NUM_GREEDY = 24
MAX_MODEL_LEN = 72  # the longest prompt and its continuation, and a few tokens more


@dataclass(frozen=True)
class Recording:
    """Prompts and the tokens that the original implementation chose greedily after each."""

    prompts: list[list[int]]
    greedy: list[list[int]]

    @classmethod
    def of(cls, case: str) -> "Recording":
        reference = np.load(DATA / case / "reference.npz")
        ends = np.cumsum(reference["prompt_lens"])
        prompts = [part.tolist() for part in np.split(reference["prompts"], ends[:-1])]
        return cls(prompts, reference["greedy"].tolist())

    def grown_to_multiples(self, page_size: int) -> "Recording":
        """The same sequences with the first tokens of each continuation moved into the prompt, to fill its pages."""
        moved = [-len(prompt) % page_size for prompt in self.prompts]
        return Recording(
            [p + g[:n] for p, g, n in zip(self.prompts, self.greedy, moved, strict=True)],
            [g[n:] for g, n in zip(self.greedy, moved, strict=True)],
        )


class PlanRecorder:
    """A runner that passes everything on to the real one and keeps the plans."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.plans: list[StepPlan] = []

    def dispatch(self, plan: StepPlan) -> StepHandle:
        self.plans.append(deepcopy(plan))
        return self.runner.dispatch(plan)

    def collect(self, handle: StepHandle) -> list[int]:
        return self.runner.collect(handle)

    def close(self) -> bool:
        return self.runner.close()


def recorded_plans(llm: LLM) -> list[StepPlan]:
    """The plans of an engine's steps from here on."""
    runner = llm.core.runner
    recorder = PlanRecorder(runner.runner if isinstance(runner, PlanRecorder) else runner)
    llm.core.runner = recorder
    return recorder.plans


def recorded_llm(case: str, compilation_cache_dir: Path, **settings: Any) -> LLM:
    """An engine of a recorded checkpoint, with few and small shapes, each compiled when first used."""
    return LLM(
        str(DATA / case),
        **{
            "dtype": "float32",
            "max_model_len": min(MAX_MODEL_LEN, load_config(DATA / case).context_length),
            "page_size": 4,
            "max_num_seqs": 4,
            "max_num_batched_tokens": 4,
            "skip_tokenizer_init": True,
            "compile_ahead": False,
            "compilation_cache_dir": str(compilation_cache_dir),
            **settings,
        },
    )


def greedy_params(max_tokens: int = NUM_GREEDY) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    """The token ids of each answer."""
    return [output.outputs[0].token_ids for output in outputs]


def generate_checked(
    llm: LLM, prompts: list[list[int]], params: SamplingParams | list[SamplingParams]
) -> list[list[int]]:
    """The answers' token ids; the scheduler's invariants are checked after every step, and that all pages are free."""
    scheduler = llm.core.scheduler
    step = llm.core.step

    def checked_step() -> list[RequestUpdate]:
        updates = step()
        scheduler.check_integrity()
        return updates

    llm.core.step = checked_step  # type: ignore[method-assign]
    try:
        answers = tokens(llm.generate(prompts, params, use_tqdm=False))
    finally:
        llm.core.step = step  # type: ignore[method-assign]
    assert scheduler.stats().num_used_pages == 0
    return answers
