"""Train the bundled demo model: a small Llama on the Python standard library's sources.

    python scripts/train_demo_model.py --output jaxserve/demo_model                  # minutes on one GPU
    python scripts/train_demo_model.py --prepare tokens.npz                          # only the text, on any machine
    python scripts/train_demo_model.py --tokens tokens.npz --output jaxserve/demo_model

The weights are float32, the computation is bfloat16. The same seed, settings and kind of machine give the same data
order and dropout. The parameters with the lowest held-out loss are kept.
"""

import argparse
import functools
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
from demo_model_corpus import Corpus, prepare
from demo_model_export import export, to_numpy
from demo_model_llama import ModelConfig, Params, attention_implementation, forward, init_params
from jax import Array
from tokenizers import Tokenizer

PROMPTS = (
    "def fibonacci(n):\n",
    "class Stack:\n",
    "import os\nimport sys\n\ndef read_lines(path):\n",
    "def is_prime(n):\n    ",
)


@dataclass(frozen=True)
class TrainConfig:
    """How the model is trained. A step is `batch_size` windows of `seq_len` tokens."""

    epochs: float = 48.0
    batch_size: int = 64
    seq_len: int = 1024
    learning_rate: float = 3e-3
    final_learning_rate: float = 3e-5
    warmup_steps: int = 300
    weight_decay: float = 0.2
    dropout: float = 0.2
    seed: int = 0
    eval_every: int = 500


def loss_sum(params: Params, windows: Array, mask: Array, config: ModelConfig, rate: float, key: Array | None) -> Array:
    """Sum of the predictions' cross entropy in nats, windows [B, T + 1], weighted by mask (broadcast to [B, T])."""
    half = {name: value.astype(jnp.bfloat16) for name, value in params.items()}
    logits = forward(half, windows[:, :-1], config, rate, key)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:])
    return jnp.sum(losses * mask)


def line_starts(train: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Positions of `train` where a line starts."""
    pieces = [tokenizer.decode([i], skip_special_tokens=False) for i in range(tokenizer.get_vocab_size())]
    ends = np.array([piece.endswith("\n") for piece in pieces])
    return np.flatnonzero(ends[train[:-1]]).astype(np.int32) + 1


def sample_windows(key: Array, train: Array, starts: Array, batch_size: int, seq_len: int) -> Array:
    """[B, T + 1] windows: half from anywhere, half <bos> and then a line's start, since prompts begin that way."""
    key_any, key_line = jax.random.split(key)
    last = train.shape[0] - seq_len - 1
    num_lines = batch_size // 2
    anywhere = jax.random.randint(key_any, (batch_size - num_lines,), 0, last)
    lines = starts[jax.random.randint(key_line, (num_lines,), 0, starts.shape[0])]
    begin = jnp.concatenate([anywhere, jnp.minimum(lines, last) - 1])
    windows = train[begin[:, None] + jnp.arange(seq_len + 1)].astype(jnp.int32)
    return windows.at[batch_size - num_lines :, 0].set(0)


def held_out_loss(params: Params, held_out: np.ndarray, config: ModelConfig, seq_len: int) -> float:
    """Nats per token over all the held-out text, in windows side by side; the first token has no prediction."""
    tokens = held_out.astype(np.int32)
    num_windows = -(-(len(tokens) - 1) // seq_len)
    padded = np.zeros(num_windows * seq_len + 1, np.int32)
    padded[: len(tokens)] = tokens
    windows = np.lib.stride_tricks.sliding_window_view(padded, seq_len + 1)[::seq_len]
    mask = (np.arange(num_windows * seq_len) < len(tokens) - 1).reshape(num_windows, seq_len)
    total = 0.0
    for i in range(0, num_windows, 64):
        total += float(_eval(params, windows[i : i + 64], mask[i : i + 64], config))
    return total / (len(tokens) - 1)


@functools.partial(jax.jit, static_argnames="config")
def _eval(params: Params, windows: Array, mask: Array, config: ModelConfig) -> Array:
    return loss_sum(params, windows, mask, config, 0.0, None)


def train(
    corpus: Corpus, config: ModelConfig, settings: TrainConfig, minutes: float
) -> tuple[Params, dict[str, object]]:
    """Train, and keep the parameters with the lowest held-out loss.

    Args:
        minutes: upper limit; the schedule is shortened at its start if the measured speed would exceed it.

    Returns:
        The float32 parameters, and the record of the run.
    """
    print(f"attention: {attention_implementation()}", flush=True)  # decided here, outside any trace
    tokens = jnp.asarray(corpus.train)
    starts = jnp.asarray(line_starts(corpus.train, Tokenizer.from_str(corpus.tokenizer_json)))
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b1=0.9, b2=0.95),
        optax.add_decayed_weights(settings.weight_decay, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
    )
    tokens_a_step = settings.batch_size * settings.seq_len
    params = init_params(jax.random.key(settings.seed), config)
    state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(
        params: Params, state: optax.OptState, tokens: Array, starts: Array, step: Array, rate: Array
    ) -> tuple[Params, optax.OptState, Array]:
        key = jax.random.fold_in(jax.random.key(settings.seed + 1), step)
        windows = sample_windows(key, tokens, starts, settings.batch_size, settings.seq_len)
        # The counter-based rbg generator: dropout masks cost less than with the default one.
        noise = jax.random.key(jax.random.bits(key), impl="unsafe_rbg")
        scale = jnp.float32(1.0 / tokens_a_step)
        loss, grads = jax.value_and_grad(loss_sum)(params, windows, scale, config, settings.dropout, noise)
        updates, state = optimizer.update(grads, state, params)
        return jax.tree.map(lambda p, u: p - rate * u, params, updates), state, loss

    num_steps = max(1, round(settings.epochs * len(corpus.train) / tokens_a_step))
    clock = _Clock(minutes)
    best, best_params, history = float("inf"), None, []
    step = 0
    while step < num_steps:
        rate = learning_rate(step, num_steps, settings)
        params, state, loss = update(params, state, tokens, starts, jnp.int32(step), jnp.float32(rate))
        step += 1
        if step in (10, 60):
            float(loss)  # waits for the device
            num_steps = clock.limit(step, num_steps)
        if step % settings.eval_every == 0 or step == num_steps:
            held_out = held_out_loss(params, corpus.held_out, config, settings.seq_len)
            history.append({"step": step, "train_loss": round(float(loss), 4), "held_out_loss": round(held_out, 4)})
            if held_out < best:
                best, best_params = held_out, jax.tree.map(jnp.copy, params)
            print(
                f"step {step}/{num_steps}  {step * tokens_a_step / 1e6:.0f} M tokens  {clock.elapsed:.0f} s  "
                f"train {float(loss):.4f}  held out {held_out:.4f}  best {best:.4f}",
                flush=True,
            )
    if best_params is None:
        raise RuntimeError("the loss was never a number; lower --learning-rate")
    record = {
        "num_steps": num_steps,
        "num_tokens_seen": num_steps * tokens_a_step,
        "seconds": round(clock.elapsed),
        "device": jax.devices()[0].device_kind,
        "jax_version": jax.__version__,
        "history": history,
    }
    return best_params, record


def learning_rate(step: int, num_steps: int, settings: TrainConfig) -> float:
    """Linear warm-up, then a half cosine down to the final rate (Loshchilov and Hutter 2017)."""
    warmup = min(settings.warmup_steps, num_steps // 10 + 1)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    cosine = 0.5 * (1 + float(np.cos(np.pi * (step - warmup) / max(1, num_steps - warmup))))
    return settings.final_learning_rate + (settings.learning_rate - settings.final_learning_rate) * cosine


class _Clock:
    """Turns a limit in minutes into one in steps, from the speed measured after compilation."""

    def __init__(self, minutes: float) -> None:
        self._start = time.monotonic()
        self._limit = minutes * 60
        self._mark: tuple[int, float] | None = None

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._start

    def limit(self, step: int, num_steps: int) -> int:
        """Called twice: the first call starts the measurement, the second ends it."""
        if self._mark is None:
            self._mark = (step, self.elapsed)
            return num_steps
        seconds = (self.elapsed - self._mark[1]) / (step - self._mark[0])
        print(f"{1000 * seconds:.1f} ms a step", flush=True)
        affordable = step + int((self._limit - self.elapsed) / (1.05 * seconds))
        return min(num_steps, max(affordable, step + 1))


def generate(
    params: Params, tokenizer: Tokenizer, prompt: str, config: ModelConfig, temperature: float, num_tokens: int = 96
) -> str:
    """Continue a prompt by recomputing the whole window for each token: slow, but short."""
    ids = tokenizer.encode(prompt).ids
    window = np.zeros((1, len(ids) + num_tokens), np.int32)
    window[0, : len(ids)] = ids
    for i in range(len(ids), window.shape[1]):
        logits = _next_logits(params, window, i - 1, config)
        key = jax.random.fold_in(jax.random.key(0), i)
        window[0, i] = int(jax.random.categorical(key, logits / temperature) if temperature else jnp.argmax(logits))
        if window[0, i] == 1:
            break
    return tokenizer.decode(window[0, : i + 1].tolist())


@functools.partial(jax.jit, static_argnames="config")
def _next_logits(params: Params, window: Array, position: Array, config: ModelConfig) -> Array:
    return forward(params, window, config)[0, position]


def main() -> None:
    """Read the command line, train, and write the model directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="the model directory to write")
    parser.add_argument("--prepare", type=Path, help="write tokenizer and tokens to this .npz file and stop")
    parser.add_argument("--tokens", type=Path, help="train on what --prepare wrote")
    parser.add_argument("--corpus", type=Path, help="folder of sources; the interpreter's standard library if left out")
    parser.add_argument("--minutes", type=float, default=30.0, help="most minutes to train (default %(default)s)")
    for name, value in asdict(TrainConfig()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help="default %(default)s")
    args = parser.parse_args()
    corpus = Corpus.load(args.tokens) if args.tokens else prepare(args.corpus)
    if args.prepare:
        corpus.save(args.prepare)
        return print(f"wrote {args.prepare}: {corpus.facts}")
    if not args.output:
        parser.error("--output is required to train")
    config = ModelConfig()
    settings = TrainConfig(**{name: getattr(args, name) for name in asdict(TrainConfig())})
    params, record = train(corpus, config, settings, args.minutes)
    rounded = {name: value.astype(jnp.bfloat16) for name, value in params.items()}
    final = held_out_loss(rounded, corpus.held_out, config, settings.seq_len)
    bits = final * (len(corpus.held_out) - 1) / np.log(2) / corpus.held_out_bytes
    record |= {"held_out_nats_per_token": round(final, 4), "held_out_bits_per_byte": round(float(bits), 4)}
    export(args.output, to_numpy(rounded), asdict(config), corpus, asdict(settings), record)
    print(f"held out: {final:.4f} nats per token, {bits:.4f} bits per byte; wrote {args.output}")
    tokenizer = Tokenizer.from_str(corpus.tokenizer_json)
    full = {name: value.astype(jnp.float32) for name, value in rounded.items()}
    for prompt in PROMPTS:
        for temperature in (0.0, 0.7):
            print(
                f"--- temperature {temperature}\n{generate(full, tokenizer, prompt, config, temperature)}", flush=True
            )


if __name__ == "__main__":
    main()
