"""The Triton kernel of gumbel_argmax: noise made where it is used, and only for tokens that can win."""

# mypy: ignore-errors
# The bodies are Triton's language, which only looks like Python.

import triton
import triton.language as tl

TINY: tl.constexpr = tl.constexpr(1.1754943508222875e-38)
# Noise of 23-bit uniform numbers lies between -log(-log(tiny)) = -4.470 and -log(-log(1 - 2^-23)) = 15.943. A token
# further than their difference, 20.413, below the best cannot win.
REACH: tl.constexpr = tl.constexpr(-20.5)


@triton.jit
def _rotate(x, bits: tl.constexpr):
    return (x << bits) | (x >> (32 - bits))


@triton.jit
def _four_rounds(a, b, r0: tl.constexpr, r1: tl.constexpr, r2: tl.constexpr, r3: tl.constexpr):
    a += b
    b = _rotate(b, r0) ^ a
    a += b
    b = _rotate(b, r1) ^ a
    a += b
    b = _rotate(b, r2) ^ a
    a += b
    b = _rotate(b, r3) ^ a
    return a, b


@triton.jit
def threefry(key_a, key_b, a, b):
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011), all uint32: the block cipher of (a, b) under the key."""
    key_c = key_a ^ key_b ^ 0x1BD11BDA
    a, b = _four_rounds(a + key_a, b + key_b, 13, 15, 26, 6)
    a, b = _four_rounds(a + key_b, b + key_c + 1, 17, 29, 16, 24)
    a, b = _four_rounds(a + key_c, b + key_a + 2, 13, 15, 26, 6)
    a, b = _four_rounds(a + key_a, b + key_b + 3, 17, 29, 16, 24)
    a, b = _four_rounds(a + key_b, b + key_c + 4, 13, 15, 26, 6)
    return a + key_c, b + key_a + 5


@triton.jit
def _gumbel(seed_high, seed_low, position, tokens):
    """jax.random.gumbel of the tokens' entries, under the seed's key with the position folded in."""
    no_high = (position * 0).to(tl.uint32, bitcast=True)
    key_a, key_b = threefry(
        seed_high.to(tl.uint32, bitcast=True),
        seed_low.to(tl.uint32, bitcast=True),
        no_high,
        position.to(tl.uint32, bitcast=True),
    )
    # Entry i is drawn from the halves of block (0, i).
    a, b = threefry(key_a, key_b, (tokens * 0).to(tl.uint32, bitcast=True), tokens.to(tl.uint32, bitcast=True))
    uniform = (((a ^ b) >> 9) | 0x3F800000).to(tl.float32, bitcast=True) - 1.0
    uniform = tl.maximum(uniform + TINY, TINY)
    return -tl.log(-tl.log(uniform))


@triton.jit
def _best_noisy(x, best, floor, t, seed, position, tokens):
    """(value, place) of the best noisy logit among those that can win; (-inf, 0) if none can."""
    scaled = _scale(x, best, t)
    noise = _gumbel(tl.load(seed), tl.load(seed + 1), position, tokens)
    return tl.max(tl.where((x >= floor) & (scaled >= REACH), scaled + noise, float("-inf")), 0, return_indices=True)


@triton.jit
def _scale(x, best, t):
    """Rounded as IEEE says, which the operator's own division is not."""
    return tl.div_rn(x - best, tl.zeros_like(x) + t)


@triton.jit
def draw_kernel(
    logits,
    best,
    floor,
    temperature,
    seeds,
    positions,
    values,
    ids,
    few_tokens,
    V: tl.constexpr,
    CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    FEW: tl.constexpr,
):
    """The best noisy logit of one chunk of one row, and its token. Grid (CHUNKS, S); values and ids [S, CHUNKS].

    If no more than FEW tokens can win, they are listed first, in few_tokens [S, CHUNKS, FEW], and noise is made for
    these alone: it costs more than all else.
    """
    chunk = tl.program_id(0)
    row = tl.program_id(1)
    t = tl.load(temperature + row)
    out = row * CHUNKS + chunk
    if t < TINY:
        tl.store(values + out, 0.0)
        tl.store(ids + out, 0)
        return
    top = tl.load(best + row)
    bound = tl.load(floor + row)
    seed = seeds + 2 * row
    position = tl.load(positions + row)
    row_logits = logits + row.to(tl.int64) * V
    tokens = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(row_logits + tokens, mask=tokens < V, other=float("-inf"))
    can_win = ((x >= bound) & (_scale(x, top, t) >= REACH)).to(tl.int32)
    num = tl.sum(can_win, 0)
    value = tl.full([], float("-inf"), tl.float32)
    token = chunk * CHUNK
    if num > FEW:
        value, place = _best_noisy(x, top, bound, t, seed, position, tokens)
        token += place
    elif num > 0:
        few = few_tokens + out.to(tl.int64) * FEW
        tl.store(few + tl.cumsum(can_win, 0) - 1, tokens, mask=can_win > 0)
        # All of this program's stores come before its loads.
        tl.debug_barrier()
        index = tl.arange(0, FEW)
        listed = tl.load(few + index, mask=index < num, other=0)
        x_few = tl.load(row_logits + listed, mask=index < num, other=float("-inf"))
        value, place = _best_noisy(x_few, top, bound, t, seed, position, listed)
        # The list ascends, so equal values go to the lower id here too.
        token = tl.sum(tl.where(index == place, listed, 0), 0)
    tl.store(values + out, value)
    tl.store(ids + out, token)
