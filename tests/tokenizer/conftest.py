"""Small tokenizers of the kinds that open models use, built here."""

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from jaxserve.tokenizer import Tokenizer
from jaxserve.tokenizer.fast import FastBackend
from tests.support.old_vocabularies import write_byte_level, write_qwen, write_sentencepiece

TEXTS = [
    "def main(argv):\n    print('hello world', argv)\n",
    "The quick brown fox jumps over the lazy dog. " * 3,
    "Grüße aus Köln, naïve café — 東京 and 😀 emoji",
]


def _byte_level() -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    backend.add_tokens(["an added word"])
    return backend


def _llama2_like() -> Backend:
    words = ["<unk>", "<bos>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256))]
    chars = ["▁", *"abcdefghijklmnopqrstuvwxyz.,'()"]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "w"), ("o", "r"), ("▁w", "or"), ("▁", "▁"), ("e", "r")]
    vocab = {word: i for i, word in enumerate([*words, *chars, *(a + b for a, b in merges)])}
    backend = Backend(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    backend.add_special_tokens(["<unk>", "<bos>", "<eos>"])
    return backend


def _metaspace() -> Backend:
    backend = Backend(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"], show_progress=False)
    )
    return backend


def _byte_level_in_sequence() -> Backend:
    backend = _byte_level()
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("q", "k")])
    return backend


@pytest.fixture(scope="session")
def byte_level_backend() -> Backend:
    return _byte_level()


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    return Tokenizer(FastBackend(_byte_level()), {"bos_token": "<bos>", "eos_token": "<eos>"})


@pytest.fixture(scope="session")
def llama2_like() -> Tokenizer:
    return Tokenizer(FastBackend(_llama2_like()), {"bos_token": "<bos>", "eos_token": "<eos>"})


@pytest.fixture(scope="session")
def metaspace() -> Tokenizer:
    return Tokenizer(FastBackend(_metaspace()))


@pytest.fixture(scope="session")
def byte_level_in_sequence() -> Tokenizer:
    return Tokenizer(FastBackend(_byte_level_in_sequence()))


@pytest.fixture(scope="session")
def sentencepiece_llama(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_sentencepiece(tmp_path_factory.mktemp("llama"), legacy=False))


@pytest.fixture(scope="session")
def sentencepiece_legacy(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_sentencepiece(tmp_path_factory.mktemp("legacy")))


@pytest.fixture(scope="session")
def sentencepiece_unigram(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_sentencepiece(tmp_path_factory.mktemp("unigram"), "unigram"))


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_qwen(tmp_path_factory.mktemp("qwen")))


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_byte_level(tmp_path_factory.mktemp("gpt2")))


ANY = (
    "byte_level",
    "llama2_like",
    "metaspace",
    "byte_level_in_sequence",
    "sentencepiece_llama",
    "sentencepiece_legacy",
    "sentencepiece_unigram",
    "qwen",
    "gpt2",
)


@pytest.fixture(params=ANY, scope="session")
def any_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    tokenizer: Tokenizer = request.getfixturevalue(request.param)
    return tokenizer
