"""The checkpoints that scripts/record_reference.py records: one module a group of families."""

from reference_cases import gemma, gpt, internlm, llama, mistral, phi, postnorm, qwen
from reference_cases.case import Case
from reference_cases.llama import ROPE_COMMON, ROPE_POSITIONS, ROPE_SETTINGS

__all__ = ["CASES", "ROPE_COMMON", "ROPE_POSITIONS", "ROPE_SETTINGS", "Case"]

CASES: dict[str, Case] = {
    **llama.CASES,
    **mistral.CASES,
    **qwen.CASES,
    **gemma.CASES,
    **phi.CASES,
    **postnorm.CASES,
    **internlm.CASES,
    **gpt.CASES,
}
