"""`jaxserve generate`: complete prompts in this process."""

import argparse
import sys

import msgspec

from jaxserve.cli.flags import config_from_flags
from jaxserve.config import EngineConfig
from jaxserve.request import SamplingParams


def run(args: argparse.Namespace) -> int:
    """Print each prompt and what follows it, or one JSON object each."""
    from jaxserve.engine.llm import LLM

    params = SamplingParams(
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        stop=args.stop,
        seed=args.sampling_seed,
    )
    config = config_from_flags(EngineConfig, args, model=args.model)
    prompts = args.prompts or [line.rstrip("\n") for line in sys.stdin]
    llm = LLM.from_config(config)
    for output in llm.generate(prompts, params):
        if args.json:
            print(msgspec.json.encode(output).decode())
        else:
            print(f"{output.prompt}{output.outputs[0].text}\n")
    return 0
