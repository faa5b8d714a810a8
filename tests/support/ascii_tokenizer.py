"""A tokenizer whose id of an ASCII character is its code, so that text and tokens can be read off each other.

128 ASCII ids, then `<eos>` (128) and `<bos>` (129, put before text unless told otherwise).
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

EOS, BOS, VOCAB_SIZE = 128, 129, 130
CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def write_tokenizer(directory: Path) -> Path:
    """Write tokenizer.json and tokenizer_config.json to a directory, which is returned."""
    characters = {_visible(code): code for code in range(128)}
    tokenizer = Tokenizer(models.BPE(vocab=characters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True), AddedToken("<bos>", special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "chat_template": CHAT_TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def ascii_text(token_ids: list[int]) -> str:
    """What the ids spell, special ones left out."""
    return "".join(chr(token) for token in token_ids if token < 128)


def _visible(code: int) -> str:
    """The character that stands for a byte in a byte-level vocabulary: itself if printable, else one above 255."""
    hidden = [*range(33), 127]
    return chr(256 + hidden.index(code)) if code in hidden else chr(code)
