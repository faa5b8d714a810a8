"""ChatFormat: how a conversation becomes token ids; the formats of old chat models, which came without a template."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxserve.errors import CheckpointError, ConfigError
from jaxserve.tokenizer.added_tokens import AddedToken
from jaxserve.tokenizer.backend import TokenizerBackend
from jaxserve.tokenizer.chat_template import ChatTemplate
from jaxserve.tokenizer.loading import TokenizerFiles, read_json
from jaxserve.tokenizer.tiktoken_backend import TiktokenBackend

_TEMPLATES = Path(__file__).with_name("chat_templates")
_BAICHUAN_ARCHITECTURES = ("BaichuanForCausalLM", "BaiChuanForCausalLM")


@dataclass(frozen=True)
class BuiltInFormat:
    """The format of a family whose checkpoints hold no template.

    Attributes:
        file: the template, in chat_templates.
        add_special_tokens: put the tokenizer's own around the text, since the template does not write them.
        token_ids: the template's variables for tokens that the family knows by id. Text between them is tokenized by
            itself.
        stop_tokens: they end an answer, though the checkpoint does not name them.
    """

    file: str
    add_special_tokens: bool = False
    token_ids: Mapping[str, int] = field(default_factory=dict)
    stop_tokens: tuple[str, ...] = ()


BUILT_IN_FORMATS: Mapping[str, BuiltInFormat] = MappingProxyType(
    {
        "baichuan": BuiltInFormat("baichuan.jinja", token_ids={"user_token": 195, "assistant_token": 196}),
        "internlm": BuiltInFormat("internlm.jinja", add_special_tokens=True, stop_tokens=("<eoa>",)),
        "qwen": BuiltInFormat("qwen.jinja", stop_tokens=("<|im_end|>", "<|im_start|>")),
        "vicuna": BuiltInFormat("vicuna.jinja", add_special_tokens=True),
    }
)


@dataclass(frozen=True)
class ChatFormat:
    """How a model's conversations are written.

    Attributes:
        template: renders the messages.
        add_special_tokens: put the tokenizer's own special tokens around the rendered text.
        split_at: tokens between which the rendered text is tokenized part by part.
        stop_token_ids: they end an answer, beside the model's own.
    """

    template: ChatTemplate
    add_special_tokens: bool = False
    split_at: tuple[AddedToken, ...] = ()
    stop_token_ids: tuple[int, ...] = ()


def resolve_chat_template(chosen: str | None) -> str | None:
    """The name of a built-in format, or the absolute path of a template, from what a setting says.

    Raises:
        ConfigError: it is neither.
    """
    if chosen is None or chosen in BUILT_IN_FORMATS:
        return chosen
    path = Path(chosen).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"chat_template: {chosen!r} is neither a file nor one of the built-in {', '.join(BUILT_IN_FORMATS)}"
        )
    return str(path.absolute())


def read_chat_format(
    files: TokenizerFiles, backend: TokenizerBackend, special_tokens: Mapping[str, str], chosen: str | None
) -> ChatFormat | None:
    """The format chosen, else the checkpoint's own, else the one that the checkpoint's generation settings imply.

    Args:
        files: of the model directory.
        backend: the tokenizer.
        special_tokens: texts that templates know as `bos_token` and so on.
        chosen: a built-in format's name, or the path of a template.

    Returns:
        None if the model has none.

    Raises:
        CheckpointError: a template cannot be read, or the tokenizer lacks a token that the format needs.
    """
    if chosen is not None and chosen in BUILT_IN_FORMATS:
        return _built_in(chosen, backend, special_tokens, files.directory)
    source = _read_text(Path(chosen)) if chosen is not None else _own_template(files)
    if source is not None:
        return ChatFormat(ChatTemplate(source, special_tokens))
    generation = read_json(files.directory / "generation_config.json")
    if isinstance(backend, TiktokenBackend) and generation.get("chat_format") == "chatml":
        return _built_in("qwen", backend, special_tokens, files.directory)
    ids = {name: generation.get(f"{name}_id") for name in BUILT_IN_FORMATS["baichuan"].token_ids}
    if all(isinstance(i, int) for i in ids.values()) and _is_baichuan(files.directory):
        return _built_in("baichuan", backend, special_tokens, files.directory, ids)
    return None


def _is_baichuan(directory: Path) -> bool:
    return any(
        name in _BAICHUAN_ARCHITECTURES for name in read_json(directory / "config.json").get("architectures", ())
    )


def _built_in(
    name: str,
    backend: TokenizerBackend,
    special_tokens: Mapping[str, str],
    directory: Path,
    token_ids: Mapping[str, Any] | None = None,
) -> ChatFormat:
    built_in = BUILT_IN_FORMATS[name]
    tokens: dict[str, AddedToken] = {}
    for variable, token_id in (built_in.token_ids if token_ids is None else token_ids).items():
        text = backend.id_to_token(token_id)
        if text is None:
            raise CheckpointError(f"{directory}: the chat template {name} needs token {token_id}, which is not there")
        tokens[variable] = AddedToken(text, token_id)
    stop_ids = {token: backend.token_to_id(token) for token in built_in.stop_tokens}
    missing = [token for token, token_id in stop_ids.items() if token_id is None]
    if missing:
        raise CheckpointError(f"{directory}: the chat template {name} needs the token {missing[0]}, which is not there")
    variables = {**special_tokens, **{variable: token.text for variable, token in tokens.items()}}
    return ChatFormat(
        ChatTemplate(_read_text(_TEMPLATES / built_in.file), variables),
        add_special_tokens=built_in.add_special_tokens,
        split_at=tuple(tokens.values()),
        stop_token_ids=tuple(token_id for token_id in stop_ids.values() if token_id is not None),
    )


def _own_template(files: TokenizerFiles) -> str | None:
    path = files.directory / "chat_template.jinja"
    if path.is_file():
        return _read_text(path)
    template = files.settings.get("chat_template")
    if isinstance(template, list):  # several by name; the plain conversation is `default`
        named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{files.directory / 'tokenizer_config.json'}: chat_template must be text")
    return template


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
