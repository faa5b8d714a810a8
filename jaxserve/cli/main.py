"""The parser of the command line. Each command's own module is imported only when it runs."""

import argparse
import os
import sys
from collections.abc import Sequence

import jaxserve
from jaxserve.cli.flags import add_config_flags
from jaxserve.config import EngineConfig, ServerConfig
from jaxserve.errors import JaxserveError

MODEL_HELP = "a local model directory as Hugging Face lays it out, or `demo` for the bundled model"
# Conventional exit status of a program ended by Ctrl-C.
INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="jaxserve", description="Serve large language models on NVIDIA GPUs from JAX, over gRPC."
    )
    parser.add_argument("--version", action="version", version=f"jaxserve {jaxserve.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_generate(commands)
    _add_demo(commands)
    _add_bench(commands)
    _add_convert(commands)
    return parser


def _add_serve(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    serve = commands.add_parser("serve", help="serve a model over gRPC", description="Serve a model over gRPC.")
    serve.add_argument("model", help=MODEL_HELP)
    add_config_flags(serve, ServerConfig)
    add_config_flags(serve, EngineConfig, skip=["model"])


def _add_generate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    generate = commands.add_parser(
        "generate",
        help="complete prompts in this process, without a server",
        description="Complete prompts in this process. Prompts come from the arguments, or one a line from "
        "standard input.",
    )
    generate.add_argument("model", help=MODEL_HELP)
    generate.add_argument("prompts", nargs="*", help="texts to go on from; read from standard input if none")
    generate.add_argument("--max-tokens", type=int, default=64, help="most tokens to generate (default: 64)")
    generate.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default: 0)")
    generate.add_argument("--top-p", type=float, default=1.0, help="keep this much probability mass (default: 1)")
    generate.add_argument("--top-k", type=int, default=0, help="keep this many tokens; 0 keeps all (default: 0)")
    generate.add_argument("--stop", action="append", help="string that ends the output; may be repeated")
    generate.add_argument("--sampling-seed", type=int, help="seed of each request; drawn if not given")
    generate.add_argument("--json", action="store_true", help="print one JSON object a prompt")
    add_config_flags(generate, EngineConfig, skip=["model"])


def _add_demo(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    demo = commands.add_parser(
        "demo",
        help="start the server with the bundled model and stream some answers from it",
        description="Start the real gRPC server with the bundled model in a process of its own, send it concurrent "
        "streaming requests through the Python client, and print the text as it comes and the figures at the end.",
    )
    demo.add_argument("--requests", type=int, default=4, help="concurrent requests (default: 4)")
    demo.add_argument("--max-tokens", type=int, default=96, help="most tokens of each answer (default: 96)")


def _add_bench(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    bench = commands.add_parser("bench", help="measure throughput offline, or latency and throughput over gRPC")
    kinds = bench.add_subparsers(dest="kind", required=True, metavar="KIND")
    throughput = kinds.add_parser("throughput", help="all requests at once through the offline engine")
    throughput.add_argument("model", help=MODEL_HELP)
    add_config_flags(throughput, EngineConfig, skip=["model"])
    serve = kinds.add_parser(
        "serve", help="a running server at a fixed number of concurrent requests, or at a rate of arrivals"
    )
    serve.add_argument("target", help="host:port of the server")
    serve.add_argument("--concurrency", type=int, default=16, help="requests in flight (default: 16)")
    serve.add_argument(
        "--request-rate",
        type=float,
        help="requests a second that arrive as a Poisson process, instead of --concurrency",
    )
    serve.add_argument("--num-clients", type=int, default=1, help="processes that send them (default: 1)")
    serve.add_argument("--slo-ttft-ms", type=float, help="count requests whose first token came in time (goodput)")
    serve.add_argument("--slo-itl-ms", type=float, help="likewise, by the average time from token to token")
    for kind in (throughput, serve):
        kind.add_argument("--num-prompts", type=int, default=100, help="number of requests (default: 100)")
        kind.add_argument("--input-len", type=int, default=128, help="tokens of each prompt (default: 128)")
        kind.add_argument("--output-len", type=int, default=64, help="tokens of each answer (default: 64)")
        kind.add_argument("--json", action="store_true", help="print the figures as one JSON object")


def _add_convert(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    convert = commands.add_parser(
        "convert",
        help="write an Orbax checkpoint that restores straight into any mesh",
        description="Write an Orbax checkpoint, with the model's config and tokenizer beside it, that `serve` loads "
        "straight into any number of devices.",
    )
    convert.add_argument("source", help="a local Hugging Face directory")
    convert.add_argument("target", help="the directory to write; must not exist yet")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    args = build_parser().parse_args(argv)
    # gRPC would otherwise log a line whenever a process that uses it starts another.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    try:
        return _run(args)
    except JaxserveError as error:
        print(f"jaxserve: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(args: argparse.Namespace) -> int:
    match args.command:
        case "serve":
            from jaxserve.cli.serve import run
        case "generate":
            from jaxserve.cli.generate import run
        case "demo":
            from jaxserve.cli.demo import run
        case "bench":
            from jaxserve.cli.bench import run
        case _:
            from jaxserve.cli.convert import run
    return run(args)
