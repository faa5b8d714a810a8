"""Triton kernels as XLA takes them in Triton's own intermediate code, to compile them itself (`__gpu$xla.gpu.triton`).

XLA lets a kernel that it compiled begin while the one before it ends (programmatic dependent launch): it makes the
kernel wait, as its first instruction, until the other has ended. What is spared is the time that a launch takes.
"""

import re
from collections.abc import Mapping
from typing import Any

import triton
from jax_triton import triton_lib  # type: ignore[import-not-found, import-untyped, unused-ignore]

# Newer than the Triton in XLA: how a load or store is to use the caches.
_CACHE_POLICY = re.compile(r" ?\{cachePolicy = #tt\.cache_policy<cache_modifier = (\w+), eviction_policy = (\w+)>\}")
_ENTRY = re.compile(r"tt\.func public @(\w+)\((.*)\) attributes")


def intermediate_code(fn: Any, spec: Any, target: Any, backend: Any, settings: Mapping[str, Any]) -> str:
    """A kernel's Triton IR with its functions inlined, before anything is laid out for a GPU.

    Inlined, since XLA would make each function wait for the kernel before, and it cannot in those that reduce.

    Args:
        fn: the kernel.
        spec: jax_triton's KernelSpecialization.
        target: Triton's GPUTarget.
        backend: Triton's for it.
        settings: the backend's, as num_warps.
    """
    options = backend.parse_options(settings)
    context = triton_lib._triton.ir.context()
    triton_lib._triton.ir.load_dialects(context)
    backend.load_dialects(context)
    source = triton.compiler.ASTSource(fn, spec.signature, spec.constants, spec.attrs)
    module = source.make_ir(
        target, options, backend.get_codegen_implementation(options), backend.get_module_map(), context
    )
    text: str = backend.make_ttir(module, {}, options, target.arch).str_nodebug()
    return text


def as_xla_reads_it(text: str, num_more: int) -> tuple[str, str]:
    """The entry point's name, and the text with what newer Tritons write differently as XLA's Triton reads it.

    Args:
        text: Triton IR.
        num_more: M, results that XLA passes besides, though they lie where an argument does.

    Returns:
        The name, and the text, whose entry point takes M pointers more, that it does not read.

    Raises:
        ValueError: there is not one entry point.
    """
    entries = list(_ENTRY.finditer(text))
    if len(entries) != 1:
        raise ValueError(f"there are {len(entries)} entry points in this text: {text[:200]!r}")
    (entry,) = entries
    more = "".join(f", %result_{i}: !tt.ptr<i8>" for i in range(num_more))
    text = text[: entry.end(2)] + more + text[entry.end(2) :]
    return entry[1], _CACHE_POLICY.sub(_old_cache_policy, text)


def _old_cache_policy(found: re.Match[str]) -> str:
    modifier, policy = found[1], found[2]
    old = "" if modifier == "none" else f" cacheModifier = {modifier}"
    return old if policy == "evict_normal" else f"{old} evictionPolicy = {policy}"
