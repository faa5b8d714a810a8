"""The demo model's training text: the Python standard library's sources, its tokenizer, and both as arrays.

`prepare` is the step that needs no accelerator; `scripts/train_demo_model.py` calls it and trains on what it returns.
"""

import ast
import hashlib
import json
import re
import sys
import sysconfig
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, EOS = "<bos>", "<eos>"
VOCAB_SIZE = 4096
# Tables and generated text, not code that someone would write.
EXCLUDED_FOLDERS = {"site-packages", "encodings", "pydoc_data", "__pycache__", "encoded_modules", "cjkencodings"}
MAX_FILE_BYTES = 400_000
HELD_OUT_PERCENT = 3

# Chat messages as a Python file would hold them: what the user says is a comment, what the model says is code.
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}
        {{- message['content'] + '\\n' }}
    {%- elif message['role'] in ['system', 'user'] %}
        {{- '# ' + message['content'] | replace('\\n', '\\n# ') + '\\n' }}
    {%- else %}
        {{- raise_exception('the roles are system, user and assistant, got ' + message['role']) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '\\n' }}
{%- endif %}"""


@dataclass(frozen=True)
class Corpus:
    """Tokenized text.

    Attributes:
        train: [num_tokens] uint16, `<bos> file <eos>` after one another.
        held_out: [num_tokens] uint16, likewise, from files that `train` has no part of.
        held_out_bytes: UTF-8 bytes of the held-out files.
        tokenizer_json: the tokenizer in Hugging Face's format.
        license_text: the licence of the text.
        facts: where the text came from and how much of it there is, for the record.
    """

    train: NDArray[np.uint16]
    held_out: NDArray[np.uint16]
    held_out_bytes: int
    tokenizer_json: str
    license_text: str
    facts: dict[str, object]

    def save(self, path: Path) -> None:
        """Write everything to one compressed .npz file."""
        rest = {
            "held_out_bytes": self.held_out_bytes,
            "tokenizer_json": self.tokenizer_json,
            "license_text": self.license_text,
            "facts": self.facts,
        }
        np.savez_compressed(path, train=self.train, held_out=self.held_out, rest=np.array(json.dumps(rest)))

    @classmethod
    def load(cls, path: Path) -> "Corpus":
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            rest = json.loads(str(arrays["rest"]))
            return cls(train=arrays["train"], held_out=arrays["held_out"], **rest)


def read_sources(root: Path) -> dict[str, str]:
    """The Python files under `root` that are worth learning from, by relative path, in a fixed shuffled order."""
    sources: dict[str, str] = {}
    seen: set[str] = set()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if EXCLUDED_FOLDERS & set(path.relative_to(root).parts) or path.stat().st_size > MAX_FILE_BYTES:
            continue
        try:
            text = path.read_text(encoding="utf-8").replace("\r\n", "\n")
            with warnings.catch_warnings(action="ignore"):
                ast.parse(text)
        except (UnicodeDecodeError, SyntaxError, ValueError):
            continue  # files that are broken on purpose, for the tests
        digest = hashlib.sha256(text.encode()).hexdigest()
        if len(text) < 200 or digest in seen or _is_table(text):
            continue
        seen.add(digest)
        sources[name] = text
    return dict(sorted(sources.items(), key=lambda item: _hash(item[0])))


def _is_table(text: str) -> bool:
    foreign = sum(len(run) for run in re.findall(r"[^\x00-\x7f]+", text))
    numbers = sum(len(run) for run in re.findall(r"[0-9]+|\\[xuU][0-9a-fA-F]+", text))
    return foreign > 0.05 * len(text) or numbers > 0.2 * len(text)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016, over bytes as in GPT-2) that puts <bos> before every text.

    Line ends and indentation are tokens of their own, so that a prompt that ends with either is cut as in the text.
    """
    tokenizer = Tokenizer(models.BPE())
    lines = pre_tokenizers.Split(Regex(r"\n+|^[ \t]+"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([lines, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return tokenizer


def _to_tokens(tokenizer: Tokenizer, texts: list[str]) -> NDArray[np.uint16]:
    eos = tokenizer.token_to_id(EOS)
    encoded = tokenizer.encode_batch(texts)
    return np.concatenate([np.array([*e.ids, eos], np.uint16) for e in encoded])


def prepare(root: Path | None = None) -> Corpus:
    """Read the sources, train the tokenizer on the training files and tokenize both parts.

    Args:
        root: the standard library's folder; the running interpreter's own if None.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    sources = read_sources(root)
    held_out = [text for name, text in sources.items() if _hash(name) % 100 < HELD_OUT_PERCENT]
    train = [text for name, text in sources.items() if _hash(name) % 100 >= HELD_OUT_PERCENT]
    tokenizer = train_tokenizer(train)
    held_out_bytes = sum(len(text.encode()) for text in held_out)
    train_tokens, held_out_tokens = _to_tokens(tokenizer, train), _to_tokens(tokenizer, held_out)
    facts: dict[str, object] = {
        "text": "sources of the Python standard library",
        "python_version": sys.version.split()[0],
        "license": "PSF License Agreement",
        "num_train_files": len(train),
        "num_held_out_files": len(held_out),
        "num_train_bytes": sum(len(text.encode()) for text in train),
        "num_held_out_bytes": held_out_bytes,
        "num_train_tokens": len(train_tokens),
        "num_held_out_tokens": len(held_out_tokens),
    }
    license_file = root / "LICENSE.txt"
    license_text = license_file.read_text(encoding="utf-8") if license_file.exists() else ""
    return Corpus(train_tokens, held_out_tokens, held_out_bytes, tokenizer.to_str(pretty=True), license_text, facts)
