"""Write the demo model as an ordinary Hugging Face directory."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from demo_model_corpus import BOS, CHAT_TEMPLATE, EOS, Corpus
from jax import Array
from numpy.typing import NDArray

CARD = """\
---
language: code
license: other
license_name: psf-license-agreement
library_name: jaxserve
tags: [python, llama, demo]
---

# The jaxserve demo model

A Llama of {millions:.1f} M parameters that continues Python source code, so that `jaxserve demo` and the tests have a
real model to serve without a download. It is a toy: what it writes looks like Python and is not to be relied on.

* Architecture: `LlamaForCausalLM`, {num_hidden_layers} layers, hidden size {hidden_size}, {num_attention_heads} query \
and {num_key_value_heads} key/value heads of {head_dim}, tied embeddings, context {max_position_embeddings} tokens.
* Tokenizer: byte-level BPE with {vocab_size} entries, trained on the same text; `<bos>` opens every prompt.
* Text: the sources of Python {python_version}'s standard library, {num_train_tokens:,} tokens; {num_held_out_files} \
files ({num_held_out_tokens:,} tokens) were held out, chosen by a hash of their names.
* Held-out loss: {held_out_nats_per_token} nats per token, {held_out_bits_per_byte} bits per byte.
* Made by `scripts/train_demo_model.py`; `training.json` records settings and progress.
* Chat template: messages of system and user become comments, those of the assistant stand as code. The model was not
  trained to follow instructions.

The training text is under the PSF License Agreement (see LICENSE), copyright Python Software Foundation.
"""

NOTICE = """\
The demo model and its tokenizer were trained on the source code of the Python {python_version} standard library,
Copyright (c) 2001 Python Software Foundation; All Rights Reserved, used under the PSF License Agreement. Its output
can repeat passages of that text. The licence of the training text follows.

------------------------------------------------------------------------------------------------------------------

"""


def to_numpy(params: dict[str, Array]) -> dict[str, NDArray[Any]]:
    """Copy bfloat16 parameters to the host."""
    return {name: np.asarray(value).astype(ml_dtypes.bfloat16) for name, value in params.items()}


def write_safetensors(path: Path, tensors: dict[str, NDArray[Any]]) -> None:
    """Write bfloat16 tensors in the safetensors format: header length, JSON header, then the bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor).tobytes())


def export(
    directory: Path,
    params: dict[str, NDArray[Any]],
    sizes: dict[str, Any],
    corpus: Corpus,
    settings: dict[str, Any],
    record: dict[str, Any],
) -> None:
    """Write config, weights, tokenizer, model card, licence and the record of the training."""
    directory.mkdir(parents=True, exist_ok=True)
    num_params = sum(tensor.size for tensor in params.values())
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **sizes,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "bfloat16",
    }
    special = {"bos_token": BOS, "eos_token": EOS}
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "clean_up_tokenization_spaces": False,
        "model_max_length": sizes["max_position_embeddings"],
        "chat_template": CHAT_TEMPLATE,
    }
    training = {"data": corpus.facts, "num_parameters": num_params, "settings": settings, **record}
    files = {
        "config.json": config,
        "generation_config.json": {"bos_token_id": 0, "eos_token_id": [1]},
        "tokenizer_config.json": tokenizer_config,
        "special_tokens_map.json": special,
        "training.json": training,
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (directory / "tokenizer.json").write_text(corpus.tokenizer_json + "\n", encoding="utf-8")
    card = CARD.format(millions=num_params / 1e6, **sizes, **corpus.facts, **record)
    (directory / "README.md").write_text(card, encoding="utf-8")
    notice = NOTICE.format(**corpus.facts) + corpus.license_text
    (directory / "LICENSE").write_text(notice, encoding="utf-8")
    write_safetensors(directory / "model.safetensors", params)
