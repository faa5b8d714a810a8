"""Record what transformers' slow tokenizers make of texts that are easily got wrong.

Version 4.44 is the last series whose slow tokenizers are sentencepiece and GPT-2's own code. To record again, in an
environment of its own:

    python -m venv /tmp/tokenizers && /tmp/tokenizers/bin/pip install transformers==4.44.2 sentencepiece protobuf
    /tmp/tokenizers/bin/python scripts/record_tokenizers.py tests/data/tokenizers

writes small vocabularies trained here (tokenizer.model; vocab.json and merges.txt) and expected.json: `texts`, and for
each of `cases` the tokenizer_config.json (`config`), the `files` it stands beside and the ids of each text (`ids`).
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import sentencepiece
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

CORPUS = [
    "def main(argv):\n    print('hello world', argv)\n",
    "The quick brown fox jumps over the lazy dog.",
    "Grüße aus Köln, naïve café — 東京 and emoji",
    "大语言模型 是 一种 语言模型。你好,世界!",
    "  two  spaces   and    more, 1234567890",
]
TEXTS = [
    *("", " ", "   ", "\n", "\n\n  \n", "a", " a", "a ", "  the quick  brown   fox ", "▁a ▁▁b", "q" * 300),
    *("\tdef main():\n\t\treturn 1  # x\r\n", "print('hello world')\n\n\n    x = 12345", "I'll don't WE'VE"),
    *("大语言模型你好,世界!", "東京 und Köln", "😀😁 👩‍👩‍👧‍👦", "e\u0301 é \ufb01 Å \u2126", "x\u00a0y\u3000z\u200bw"),
    *("<s>", "<s>hello", "a</s>b", "a </s> b", "<s> [INST] hi [/INST] yes </s><s>x", "<unk>x"),
    *("hi<|endoftext|> there", "<|endoftext|>", "\x00\x01\x7f", "مرحبا עולם हिन्दी"),
]
SENTENCEPIECE = ["tokenizer.model"]
BYTE_LEVEL = ["vocab.json", "merges.txt"]
_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer"}
_QWEN2 = {"bos_token": None, "eos_token": "<|endoftext|>", "unk_token": None, "tokenizer_class": "Qwen2Tokenizer"}
CASES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "llama_legacy": (SENTENCEPIECE, {**_LLAMA, "legacy": True}),
    "llama": (SENTENCEPIECE, {**_LLAMA, "legacy": False}),
    "llama_ends": (SENTENCEPIECE, {**_LLAMA, "legacy": False, "add_bos_token": False, "add_eos_token": True}),
    "gpt2": (BYTE_LEVEL, {"tokenizer_class": "GPT2Tokenizer"}),
    "qwen2": (BYTE_LEVEL, _QWEN2),
}


def train(out: Path) -> None:
    """Write the vocabularies."""
    with (out / "tokenizer.model").open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS * 20),
            model_writer=model,
            model_type="bpe",
            vocab_size=420,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            character_coverage=0.98,
            minloglevel=2,
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=399, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS * 20, trainer)
    trained = json.loads(backend.to_str())["model"]
    vocab = trained["vocab"] | {"<|endoftext|>": len(trained["vocab"])}
    merges = (each if isinstance(each, str) else " ".join(each) for each in trained["merges"])
    (out / "vocab.json").write_text(json.dumps(vocab))
    (out / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{each}\n" for each in merges))


def ids_of(out: Path, files: list[str], config: dict[str, Any]) -> list[list[int]]:
    """The ids of each text, special tokens added as the config says."""
    with tempfile.TemporaryDirectory() as directory:
        for name in files:
            shutil.copy(out / name, directory)
        (Path(directory) / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = getattr(transformers, config["tokenizer_class"]).from_pretrained(directory)
        return [tokenizer(text)["input_ids"] for text in TEXTS]


def main() -> None:
    """Train the vocabularies and record every case."""
    parser = argparse.ArgumentParser(description="Record ids of slow tokenizers for tests/data/tokenizers.")
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    train(out)
    cases = {
        name: {"config": config, "files": files, "ids": ids_of(out, files, config)}
        for name, (files, config) in CASES.items()
    }
    expected = {"transformers": transformers.__version__, "texts": TEXTS, "cases": cases}
    (out / "expected.json").write_text(json.dumps(expected, ensure_ascii=False) + "\n")
    print(f"recorded {len(cases)} tokenizers on {len(TEXTS)} texts")


if __name__ == "__main__":
    main()
