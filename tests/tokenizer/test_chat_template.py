"""Chat templates: what they may write, and what they may not do."""

import gc
from pathlib import Path

import pytest

from jaxserve.errors import InvalidRequestError
from jaxserve.tokenizer.chat_template import ChatTemplate

HELLO = [{"role": "user", "content": "Hello <b>'you'</b> ü"}]


def render(source: str, messages: list[dict[str, str]] = HELLO, time_limit: float = 30.0) -> str:
    template = ChatTemplate(source, {"bos_token": "<bos>", "eos_token": "<eos>"}, time_limit=time_limit)
    return template.render(messages, add_generation_prompt=True)


def test_messages_and_special_tokens_are_variables() -> None:
    source = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
    assert render(source) == "<bos>user: Hello <b>'you'</b> ü<eos>"


def test_blocks_leave_no_line_of_their_own() -> None:
    source = "{% for m in messages %}\n    {% if m.role == 'user' %}\nU\n    {% endif %}\n{% endfor %}\nend"
    assert render(source) == "U\nend"


def test_the_generation_prompt_is_the_callers_choice() -> None:
    template = ChatTemplate("{% if add_generation_prompt %}>{% else %}.{% endif %}", {})
    assert (template.render(HELLO, True), template.render(HELLO, False)) == (">", ".")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ messages[0]['content'] | tojson }}", "\"Hello <b>'you'</b> ü\""),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% generation %}{{ messages | length }}{% endgeneration %}", "1"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% if tools is none and documents is none %}none{% endif %}", "none"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
    ],
)
def test_what_published_templates_use_is_there(source: str, text: str) -> None:
    assert render(source) == text


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[5]['content'].x.y }}", "undefined|has no element"),
        ("{% for m in messages %}", "line 1"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ ''.__class__.__mro__ }}", "unsafe|undefined"),
        ("{{ raise_exception.__globals__['sys'] }}", "unsafe|undefined"),
        ("{{ cycler.__init__.__globals__.os.environ }}", "unsafe|undefined"),
        ("{{ (messages[0] | attr('__class__')).__base__ }}", "unsafe|undefined"),
        ("{{ '{0.__class__.__base__}'.format(1) }}", "unsafe|undefined|''"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable"),
        ("{{ messages[0].update({'role': 'system'}) }}", "unsafe|not safely callable"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ range(10 ** 9) | list }}", "[Rr]ange"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ messages[0]['role'] * 10 ** 8 }}", "16777216 characters|memory"),
        ("{{ 'x' * 10 ** 11 }}", "memory"),
        ("{% for i in range(99999) %}{{ 'x' * 999 }}{% endfor %}", "16777216 characters"),
    ],
)
def test_a_template_that_fails_or_reaches_out_is_an_invalid_request(source: str, reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=reason) as caught:
        render(source)
    assert caught.value.field == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ (10 ** (10 ** 9)) > messages | length }}",
    ],
)
def test_a_template_without_end_is_ended(source: str) -> None:
    with pytest.raises(InvalidRequestError, match="longer than 0.5 s"):
        render(source, time_limit=0.5)


def test_a_conversation_after_one_that_was_ended_is_rendered() -> None:
    source = "{% if messages[0].role == 'slow' %}{{ (messages | length + 9) ** (10 ** 9) }}{% endif %}ok"
    template = ChatTemplate(source, {}, time_limit=2.0)
    with pytest.raises(InvalidRequestError):
        template.render([{"role": "slow", "content": ""}], True)
    assert template.render(HELLO, True) == "ok"


def test_an_error_leaves_the_process_and_the_next_conversation_alone() -> None:
    template = ChatTemplate("{{ raise_exception('no') if messages[0].role == 'bad' else 'ok' }}", {})
    template.render(HELLO, True)
    worker = template._worker
    with pytest.raises(InvalidRequestError, match="no"):
        template.render([{"role": "bad", "content": ""}], True)
    assert template.render(HELLO, True) == "ok"
    assert template._worker is worker


def test_a_message_that_looks_like_a_template_is_text() -> None:
    content = "{{ 7 * 7 }}{% raw %}\n</s>"
    assert render("{{ messages[0]['content'] }}", [{"role": "user", "content": content}]) == content


def test_the_process_ends_with_the_template() -> None:
    template = ChatTemplate("x", {})
    template.render(HELLO, True)
    assert template._worker is not None
    pid = template._worker._process.pid
    assert Path(f"/proc/{pid}").exists()
    del template
    gc.collect()
    assert not Path(f"/proc/{pid}").exists()


def test_the_process_ends_when_its_input_does() -> None:
    template = ChatTemplate("x", {})
    template.render(HELLO, True)
    assert template._worker is not None
    process = template._worker._process
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=30) == 0


def test_the_process_does_not_see_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXSERVE_TEST_SECRET", "secret")
    template = ChatTemplate("x", {})
    template.render(HELLO, True)
    assert template._worker is not None
    environment = Path(f"/proc/{template._worker._process.pid}/environ").read_bytes()
    assert b"JAXSERVE_TEST_SECRET" not in environment


def test_a_long_conversation_goes_through_the_pipes_whole() -> None:
    messages = [{"role": "user", "content": "é" * 1000}] * 1000
    text = render("{% for m in messages %}{{ m.content }}{% endfor %}", messages)
    assert text == "é" * 1_000_000
