"""Small vocabularies in the files that older model families bring, trained here, and the directories they lie in."""

import base64
import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from jaxserve.tokenizer.piece_decoder import BYTE_OF_CHAR

TEXTS = [
    "def main(argv):\n    print('hello world', argv)\n",
    "The quick brown fox jumps over the lazy dog.",
    "Grüße aus Köln, naïve café — 東京 and emoji",
    "大语言模型 是 一种 语言模型。你好,世界!",
    "  two  spaces   and    more, 1234567890",
]
# What is easily got wrong: spaces at either end and in runs, line ends, other scripts, bytes without a token, composed
# and decomposed characters, the symbol that stands for a space, and long words.
TRICKY_TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    "\n\n  \n",
    "a",
    " a",
    "a ",
    "  the quick  brown   fox ",
    "\tdef main():\n\t\treturn 1  # x\r\n",
    "print('hello world')\n\n\n    x = 12345",
    "大语言模型你好,世界!",
    "東京 und Köln",
    "😀😁 👩‍👩‍👧‍👦",
    "e\u0301 é \ufb01 Å \u2126",
    "x\u00a0y\u3000z\u200bw",
    "▁a ▁▁b",
    "I'll don't WE'VE",
    "q" * 300,
    "<s>",
    "\x00\x01\x7f",
    "مرحبا עולם हिन्दी",
]


@cache
def sentencepiece_model(kind: str = "llama") -> bytes:
    """tokenizer.model as `llama` (BPE with bytes, spaces kept), `gemma` (the same, no space put before a text),
    `baichuan` (with reserved tokens) or `unigram` (normalizing, spaces dropped, no bytes) has it."""
    bpe = {
        "model_type": "bpe",
        "vocab_size": 420,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "character_coverage": 0.98,
    }
    settings: dict[str, dict[str, Any]] = {
        "llama": bpe,
        "gemma": bpe | {"add_dummy_prefix": False},
        "baichuan": bpe | {"user_defined_symbols": ["<reserved_106>", "<reserved_107>"]},
        "unigram": {"model_type": "unigram", "vocab_size": 110},
    }
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20), model_writer=model, minloglevel=2, hard_vocab_limit=False, **settings[kind]
    )
    return model.getvalue()


def processor(kind: str = "llama", *, adds_space: bool = True) -> sentencepiece.SentencePieceProcessor:
    """The library's own reading of such a model; without a space before the text if that is said."""
    model = sentencepiece_model_pb2.ModelProto.FromString(sentencepiece_model(kind))
    model.normalizer_spec.add_dummy_prefix &= adds_space
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


@cache
def byte_level_files() -> tuple[str, str]:
    """vocab.json and merges.txt of a byte-level BPE of 400 tokens, the last of them `<|endoftext|>`."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS * 20, trainers.BpeTrainer(vocab_size=399, initial_alphabet=alphabet, show_progress=False)
    )
    model = json.loads(backend.to_str())["model"]
    vocab = model["vocab"] | {"<|endoftext|>": len(model["vocab"])}
    return json.dumps(vocab), "#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in model["merges"])


@cache
def qwen_ranks() -> dict[bytes, int]:
    """The ranks of the same BPE as tiktoken has them."""
    vocab = json.loads(byte_level_files()[0])
    del vocab["<|endoftext|>"]
    return {bytes(BYTE_OF_CHAR[char] for char in token): rank for token, rank in vocab.items()}


def write_sentencepiece(directory: Path, kind: str = "llama", **settings: Any) -> Path:
    """A directory with tokenizer.model and tokenizer_config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.model").write_bytes(sentencepiece_model(kind))
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": True, **settings}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def write_qwen(directory: Path) -> Path:
    """A directory with qwen.tiktoken."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = [b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in qwen_ranks().items()]
    (directory / "qwen.tiktoken").write_bytes(b"".join(lines))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "QWenTokenizer"}))
    return directory


def write_byte_level(directory: Path, **settings: Any) -> Path:
    """A directory with vocab.json and merges.txt."""
    directory.mkdir(parents=True, exist_ok=True)
    vocab, merges = byte_level_files()
    (directory / "vocab.json").write_text(vocab)
    (directory / "merges.txt").write_text(merges)
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory
