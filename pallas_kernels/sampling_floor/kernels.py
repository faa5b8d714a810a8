"""The Triton kernels of sampling_floor. Host code in `triton.py` launches them one after the other.

A token is dropped when the tokens above it measure up to a target: for top_k they are counted, and the target is k;
for top_p their weights exp((logit - best) / temperature) are added up, and the target is top_p of the whole. So the
floor is found as a quantile is: measure the tokens from each of a few pivots up, and go on between the two pivots that
the target lies between. A row with both is narrowed by top_k alone, and the search that ends it does both in turn.

All sums are made in an order that depends on the row alone, or in whole numbers: a row's floor is always the same.
"""

# mypy: ignore-errors
# The bodies are Triton's language, which only looks like Python.

import triton
import triton.language as tl

PIVOTS: tl.constexpr = tl.constexpr(16)
# A row's state between kernels: low, high, base, target, refined, and padding. Tokens below low are dropped, those from
# high up are kept and measure base; what lies between is open.
STATE: tl.constexpr = tl.constexpr(8)
LOWEST: tl.constexpr = tl.constexpr(-3.4028234663852886e38)
TINY: tl.constexpr = tl.constexpr(1.1754943508222875e-38)
LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
# Weights and counts in the search are whole multiples of 2^-40; 2^22 of them stay within 64 bits.
UNIT: tl.constexpr = tl.constexpr(1099511627776.0)


@triton.jit
def _params(best, temperature, top_k, top_p, min_p, row, V: tl.constexpr):
    """A row's (best logit, temperature, k, p, lowest logit that min_p leaves, counts, active).

    counts: it is narrowed by count. active: there is anything to search for.
    """
    top = tl.load(best + row)
    t = tl.load(temperature + row)
    k = tl.maximum(tl.load(top_k + row), 1)
    p = tl.load(top_p + row)
    random = t >= TINY
    t = tl.where(random, t, 1.0)
    lowest = tl.maximum(top + t * tl.log(tl.load(min_p + row)), LOWEST)
    counts = k < V
    return top, t, k, p, lowest, counts, random & (counts | (p < 1.0))


@triton.jit
def _weights(x, top, t, counts):
    """What each token adds to the measure."""
    return tl.where(counts, 1.0, tl.exp2((x - top) * (LOG2_E / t)))


@triton.jit
def _load_chunk(logits, row, V: tl.constexpr, CHUNK: tl.constexpr):
    tokens = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    return tl.load(logits + row.to(tl.int64) * V + tokens, mask=tokens < V, other=float("-inf"))


@triton.jit
def _bracket(pivots, measures, target, high, base):
    """The pivots that the target lies between: (low, what is from it up, high, what is from it up).

    pivots [PIVOTS] descend; measures [PIVOTS] are of the tokens from each up. Above the first pivot lie high and base;
    if all tokens measure less than the target, low and high are both the last pivot.
    """
    slot = tl.arange(0, PIVOTS)
    below = tl.sum((measures < target).to(tl.int32), 0)
    at_low = slot == tl.minimum(below, PIVOTS - 1)
    at_high = slot == below - 1
    new_high = tl.where(below > 0, tl.sum(tl.where(at_high, pivots, 0.0), 0), high)
    new_base = tl.where(below > 0, tl.sum(tl.where(at_high, measures, 0.0), 0), base)
    low = tl.sum(tl.where(at_low, pivots, 0.0), 0)
    return low, tl.sum(tl.where(at_low, measures, 0.0), 0), new_high, new_base


@triton.jit
def _sum_partials(partials, row, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr):
    """[PIVOTS] sums over the chunks of a row of partials [S, CHUNKS, PIVOTS]."""
    chunk = tl.arange(0, BLOCK_C)
    offsets = (row * CHUNKS + chunk)[:, None] * PIVOTS + tl.arange(0, PIVOTS)[None, :]
    return tl.sum(tl.load(partials + offsets, mask=(chunk < CHUNKS)[:, None], other=0.0), 0)


@triton.jit
def coarse_kernel(
    logits,
    best,
    temperature,
    top_k,
    top_p,
    min_p,
    ladder,
    partials,
    pivots,
    V: tl.constexpr,
    CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Measure one chunk of one row from each step of the ladder up. Grid (CHUNKS, S).

    Writes partials [S, CHUNKS, PIVOTS] and, once a row, pivots [S, PIVOTS].
    """
    row = tl.program_id(1)
    top, t, _, _, lowest, counts, active = _params(best, temperature, top_k, top_p, min_p, row, V)
    if not active:
        return
    x = _load_chunk(logits, row, V, CHUNK)
    weights = _weights(x, top, t, counts)
    step = tl.where(counts, 1.0, t)
    slot = tl.arange(0, PIVOTS)
    measures = tl.zeros([PIVOTS], tl.float32)
    values = tl.zeros([PIVOTS], tl.float32)
    for j in tl.static_range(PIVOTS):
        pivot = tl.maximum(top - step * tl.load(ladder + j), lowest)
        measure = tl.sum(tl.where(x >= pivot, weights, 0.0), 0)
        measures = tl.where(slot == j, measure, measures)
        values = tl.where(slot == j, pivot, values)
    tl.store(partials + (row * CHUNKS + tl.program_id(0)) * PIVOTS + slot, measures)
    if tl.program_id(0) == 0:
        tl.store(pivots + row * PIVOTS + slot, values)


@triton.jit
def fine_kernel(
    logits,
    best,
    temperature,
    top_k,
    top_p,
    min_p,
    coarse_partials,
    coarse_pivots,
    partials,
    pivots,
    state,
    V: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    CHUNK: tl.constexpr,
    FINE_ABOVE: tl.constexpr,
):
    """Measure one chunk again, between the two steps of the ladder that matter, where many tokens lie there.

    Grid (CHUNKS, S). Writes partials and pivots as `coarse_kernel` does, and the state [S, STATE] before them.
    """
    row = tl.program_id(1)
    top, t, k, p, _, counts, active = _params(best, temperature, top_k, top_p, min_p, row, V)
    if not active:
        return
    slot = tl.arange(0, PIVOTS)
    measures = _sum_partials(coarse_partials, row, CHUNKS, BLOCK_C)
    total = tl.sum(tl.where(slot == PIVOTS - 1, measures, 0.0), 0)
    target = tl.where(counts, k.to(tl.float32), p * total)
    values = tl.load(coarse_pivots + row * PIVOTS + slot)
    low, up_to_low, high, base = _bracket(values, measures, target, float("inf"), 0.0)
    # No token between weighs less than one at `low`, so this bounds their number.
    refined = up_to_low - base > FINE_ABOVE * _weights(low, top, t, counts)
    if tl.program_id(0) == 0:
        tl.store(state + row * STATE, low)
        tl.store(state + row * STATE + 1, high)
        tl.store(state + row * STATE + 2, base)
        tl.store(state + row * STATE + 3, target)
        tl.store(state + row * STATE + 4, refined.to(tl.float32))
    if refined:
        x = _load_chunk(logits, row, V, CHUNK)
        weights = tl.where(x < high, _weights(x, top, t, counts), 0.0)
        ceiling = tl.minimum(high, top)
        measures = tl.zeros([PIVOTS], tl.float32)
        for j in tl.static_range(PIVOTS):
            share = (j + 1) / PIVOTS
            # Written so that no bounds are far enough apart to overflow.
            pivot = tl.minimum(tl.maximum(ceiling * (1.0 - share) + low * share, low), ceiling)
            measure = tl.sum(tl.where(x >= pivot, weights, 0.0), 0)
            measures = tl.where(slot == j, measure, measures)
            values = tl.where(slot == j, pivot, values)
        tl.store(partials + (row * CHUNKS + tl.program_id(0)) * PIVOTS + slot, measures)
        if tl.program_id(0) == 0:
            tl.store(pivots + row * PIVOTS + slot, values)


@triton.jit
def compact_kernel(
    num_candidates,
    logits,
    best,
    temperature,
    top_k,
    top_p,
    min_p,
    partials,
    pivots,
    state,
    candidates,
    final_state,
    V: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    CHUNK: tl.constexpr,
    CAPACITY: tl.constexpr,
):
    """List the tokens of one chunk that are still open. Grid (CHUNKS, S).

    Adds to num_candidates [S], which is 0 before, and writes candidates [S, CAPACITY], in any order and as many as fit,
    and final_state [S, STATE]. With top_k and top_p both, tokens already kept by top_k are still open to top_p.
    """
    row = tl.program_id(1)
    top, _, _, p, _, counts, active = _params(best, temperature, top_k, top_p, min_p, row, V)
    if not active:
        return
    low = tl.load(state + row * STATE)
    high = tl.load(state + row * STATE + 1)
    base = tl.load(state + row * STATE + 2)
    target = tl.load(state + row * STATE + 3)
    refined = tl.load(state + row * STATE + 4)
    if refined > 0.0:
        values = tl.load(pivots + row * PIVOTS + tl.arange(0, PIVOTS))
        measures = base + _sum_partials(partials, row, CHUNKS, BLOCK_C)
        low, _, high, base = _bracket(values, measures, target, high, base)
    both = counts & (p < 1.0)
    high = tl.where(both, float("inf"), high)
    base = tl.where(both, 0.0, base)
    if tl.program_id(0) == 0:
        tl.store(final_state + row * STATE, low)
        tl.store(final_state + row * STATE + 1, tl.minimum(high, top))
        tl.store(final_state + row * STATE + 2, base)
        tl.store(final_state + row * STATE + 3, target)
    x = _load_chunk(logits, row, V, CHUNK)
    is_open = (x >= low) & (x < high)
    count = tl.sum(is_open.to(tl.int32), 0)
    if count > 0:
        place = tl.atomic_add(num_candidates + row, count) + tl.cumsum(is_open.to(tl.int32), 0) - 1
        tl.store(candidates + row.to(tl.int64) * CAPACITY + place, x, mask=is_open & (place < CAPACITY))


@triton.jit
def _key(x):
    """An int32 that is ordered as the float32 is."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _value(key):
    """The float32 of a key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _measure(source, num, bound, top, t, counts, INCLUSIVE: tl.constexpr, BLOCK: tl.constexpr):
    """The measure of the tokens of source [num] above the bound, or INCLUSIVE of it, in multiples of 1 / UNIT."""
    measures = tl.zeros([BLOCK], tl.int64)
    for start in range(0, num, BLOCK):
        index = start + tl.arange(0, BLOCK)
        x = tl.load(source + index, mask=index < num, other=float("-inf"))
        inside = x >= bound if INCLUSIVE else x > bound
        measures += tl.where(inside, (_weights(x, top, t, counts) * UNIT).to(tl.int64), 0)
    return tl.sum(measures, 0)


@triton.jit
def _search(source, num, low, high, base, target, top, t, counts, BLOCK: tl.constexpr):
    """The least float from low to high above which the tokens measure less than target, by halving."""
    low_key = _key(low)
    high_key = tl.maximum(_key(high), low_key)
    while low_key < high_key:
        # The middle, rounded down, without overflow.
        middle = (low_key & high_key) + ((low_key ^ high_key) >> 1)
        if base + _measure(source, num, _value(middle), top, t, counts, False, BLOCK) < target:
            high_key = middle
        else:
            low_key = middle + 1
    return _value(low_key)


@triton.jit
def search_kernel(
    logits,
    best,
    temperature,
    top_k,
    top_p,
    min_p,
    num_candidates,
    candidates,
    state,
    floor,
    V: tl.constexpr,
    CAPACITY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Find one row's floor [S] among its candidates; in the row itself if they did not fit. Grid (S,)."""
    row = tl.program_id(0)
    top, t, _, p, lowest, counts, active = _params(best, temperature, top_k, top_p, min_p, row, V)
    result = tl.where(tl.load(temperature + row) >= TINY, lowest, top)
    if active:
        low = tl.load(state + row * STATE)
        high = tl.load(state + row * STATE + 1)
        base = (tl.load(state + row * STATE + 2) * UNIT).to(tl.int64)
        target = (tl.load(state + row * STATE + 3) * UNIT).to(tl.int64)
        num = tl.load(num_candidates + row)
        source = candidates + row.to(tl.int64) * CAPACITY
        if num > CAPACITY:
            # The tokens from `high` up are in the row, so they are not counted beforehand.
            source = logits + row.to(tl.int64) * V
            num = tl.full([], V, tl.int32)
            base = tl.full([], 0, tl.int64)
        result = _search(source, num, low, high, base, target, top, t, counts, BLOCK)
        if counts & (p < 1.0):
            total = _measure(source, num, result, top, t, False, True, BLOCK)
            target = (p * total.to(tl.float32)).to(tl.int64)
            result = _search(source, num, result, top, tl.full([], 0, tl.int64), target, top, t, False, BLOCK)
    tl.store(floor + row, tl.minimum(result, top))
