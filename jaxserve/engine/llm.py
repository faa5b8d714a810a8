"""LLM: the engine in the calling process, for scripts and batch work."""

import atexit
import gc
import itertools
import weakref
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, Self

from jaxserve.config import EngineConfig
from jaxserve.engine.build import build_core
from jaxserve.engine.core import EngineCore
from jaxserve.engine.messages import EngineInfo
from jaxserve.engine.offline_request import OfflineRequest
from jaxserve.errors import InvalidRequestError
from jaxserve.model_directory import resolve_model
from jaxserve.progress import ProgressCallback, no_progress, progress_bars
from jaxserve.prompt import Prompt, read_prompt
from jaxserve.request import Request, RequestOutput, SamplingParams, validate_request
from jaxserve.tokenizer import Tokenizer


class LLM:
    """A model loaded for use in this process.

    Args:
        model: a local Hugging Face or Orbax directory, or `demo` for the bundled model.
        settings: further fields of `EngineConfig` by name, such as `dtype`, `max_model_len`, `tensor_parallel_size`,
            `gpu_memory_utilization`, `max_num_seqs`, `load_format`, `skip_tokenizer_init`.

    Raises:
        ConfigError: settings that contradict each other, the model or the devices.
        CheckpointError: the model directory cannot be served.
    """

    def __init__(self, model: str, **settings: Any) -> None:
        self._start(EngineConfig(model=model, **settings))

    @classmethod
    def from_config(cls, config: EngineConfig) -> Self:
        """An LLM from settings that exist already."""
        llm = cls.__new__(cls)
        llm._start(config)
        return llm

    def _start(self, config: EngineConfig) -> None:
        # Offline callers hand over whole lists; a limit on waiting requests would only get in their way.
        with progress_bars() as report:
            self._core, self._info = build_core(config, report, unlimited_queue=True)
        directory = self._info.tokenizer_dir
        self._tokenizer = None
        if directory is not None:
            self._tokenizer = Tokenizer.load(resolve_model(directory), self._info.chat_template)
        self._request_numbers = itertools.count()
        atexit.register(_stop_compiling, weakref.ref(self._core))
        # What was loaded stays: the garbage collector need not walk through it between steps.
        gc.collect()
        gc.freeze()

    @property
    def info(self) -> EngineInfo:
        """What was loaded: limits, dtype, number of pages, devices."""
        return self._info

    @property
    def core(self) -> EngineCore:
        """The engine itself, for measurements."""
        return self._core

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer.

        Raises:
            InvalidRequestError: the model was loaded with skip_tokenizer_init.
        """
        if self._tokenizer is None:
            raise InvalidRequestError("prompt", "there is no tokenizer (skip_tokenizer_init); give prompt_token_ids")
        return self._tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Complete prompts, all in one continuous batch.

        Args:
            prompts: one or more; each a text, a list of token ids, `{"prompt": text}` or
                `{"prompt_token_ids": ids}`. A single list of ints is one prompt.
            sampling_params: one for all or one for each; the defaults if None.
            use_tqdm: show a progress bar. (The name is vLLM's.)
            priority: of each prompt, lower first; needs scheduling_policy="priority".

        Returns:
            One output for each prompt, in their order.

        Raises:
            InvalidRequestError: a prompt or parameter cannot work; nothing was generated.
        """
        listed = _as_list(prompts)
        params = _for_each(sampling_params, len(listed), SamplingParams(), "sampling_params")
        priorities = _for_each(priority, len(listed), 0, "priority")
        requests = [self._prepare(*each) for each in zip(listed, params, priorities, strict=True)]
        if not use_tqdm:
            return self._run(requests, no_progress)
        with progress_bars() as report:
            return self._run(requests, report)

    def chat(
        self,
        messages: Sequence[Mapping[str, str]] | Sequence[Sequence[Mapping[str, str]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        add_generation_prompt: bool = True,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several, through the model's chat template.

        Args:
            messages: a list of `{"role": …, "content": …}`, or a list of such lists.
            sampling_params: as for `generate`.
            use_tqdm: as for `generate`.
            add_generation_prompt: end the prompt where the assistant's answer begins.

        Raises:
            InvalidRequestError: the model has no template, or the template refuses the messages.
        """
        several = bool(messages) and not isinstance(messages[0], Mapping)
        conversations: Any = messages if several else [messages]
        tokenizer = self.get_tokenizer()
        prompts = [
            tokenizer.apply_chat_template([dict(m) for m in each], add_generation_prompt=add_generation_prompt)
            for each in conversations
        ]
        given = _for_each(sampling_params, len(prompts), SamplingParams(), "sampling_params")
        return self.generate(prompts, [tokenizer.chat_params(params) for params in given], use_tqdm=use_tqdm)

    def _prepare(self, prompt: Prompt, params: SamplingParams, priority: int) -> OfflineRequest:
        text, token_ids = read_prompt(prompt)
        if token_ids is None:
            token_ids = self.get_tokenizer().encode(text or "")
        if self._tokenizer is None and params.stop_strings:
            raise InvalidRequestError("stop", "there is no tokenizer to find strings with; use stop_token_ids")
        validate_request(token_ids, params, self._info.limits)
        if priority and self._info.scheduling_policy != "priority":
            raise InvalidRequestError("priority", 'needs scheduling_policy="priority"')
        request = Request(
            request_id=str(next(self._request_numbers)), prompt_token_ids=token_ids, params=params, priority=priority
        )
        return OfflineRequest(request, text, self._tokenizer)

    def _run(self, requests: list[OfflineRequest], on_progress: ProgressCallback) -> list[RequestOutput]:
        active = {r.request.request_id: r for r in requests}
        try:
            for entry in requests:
                self._core.add_request(entry.request)
            on_progress("Generating", 0, len(requests))
            while active:
                stopped = []
                for update in self._core.step():
                    entry = active[update.request_id]
                    if entry.append(update):
                        del active[update.request_id]
                        # A stop string ends a request that the engine would go on with.
                        stopped += [update.request_id] if update.finish_reason is None else []
                        on_progress("Generating", len(requests) - len(active), len(requests))
                self._core.abort_requests(stopped)
        finally:
            # Left over only after Ctrl-C or a failure.
            self._core.abort_requests(list(active))
        return [entry.output() for entry in requests]


def _stop_compiling(core: weakref.ref[EngineCore]) -> None:
    """Wait for the compilation under way, if there is one: the interpreter must not be taken apart under it."""
    while (running := core()) is not None and not running.close():
        pass


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if not isinstance(prompts, Iterable):
        raise InvalidRequestError("prompt", f"must be text, token ids or a list of prompts, got {prompts!r}")
    listed: list[Any] = list(prompts)
    return [listed] if listed and all(isinstance(p, Integral) for p in listed) else listed


def _for_each[T](given: T | Sequence[T] | None, count: int, default: T, name: str) -> list[T]:
    if given is None:
        return [default] * count
    if not isinstance(given, list | tuple):
        return [given] * count  # type: ignore[list-item]
    if len(given) != count:
        raise InvalidRequestError(name, f"there are {count} prompts but {len(given)} entries; give one for each")
    return list(given)
