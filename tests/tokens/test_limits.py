"""What a chat template may not do: run for ever, fill the memory, write without measure."""

import re
import threading
import time

import pytest
import tiny

from probing import Capture, LabelledPrompt, Place, PreferencePair
from probing.errors import ModelInvalid
from probing.tokens import limits
from probing.tokens.pairs import tokenize_pairs
from probing.tokens.prompts import tokenize_prompts
from probing.tokens.templates import rendered_sha256, template_ending

REQUEST = Capture([Place("resid_post", 0)], chat=True)
NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
ENDLESS = f"{{% if messages[0].content == 'boat' %}}{NESTED}{{% endif %}}" + tiny.TEMPLATE


def read(template, *texts):
    prompts = [LabelledPrompt(f"r{number}", text) for number, text in enumerate(texts)]
    return tokenize_prompts(tiny.make_tokenizer(template=template), prompts, REQUEST)


def chat(template, prompt="Is it ok?"):
    said = [("user", prompt), ("assistant", "No"), ("assistant", "Never")]
    sides = [[{"role": role, "content": text}] for role, text in said]
    return tokenize_pairs(tiny.make_tokenizer(template=template), [PreferencePair("x", *sides)])[0]


@pytest.fixture
def in_a_hurry(monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.5)
    monkeypatch.setattr(limits, "POLLED_SECONDS", 0.05)


def rendering_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("rendering")]


@pytest.mark.usefixtures("in_a_hurry")
def test_a_template_that_does_not_end_is_stopped_and_the_row_named():
    began = time.monotonic()
    with pytest.raises(ModelInvalid, match=r"row 'r1': the chat template has not written .* within 0\.5 seconds"):
        read(ENDLESS, "near", "boat", "near")
    with pytest.raises(ModelInvalid, match="pair 'x': the chat template has not written"):
        chat(ENDLESS, "boat")
    # Nested to the end it would take minutes.
    assert time.monotonic() - began < 20
    assert not rendering_threads()


@pytest.mark.usefixtures("in_a_hurry")
def test_it_is_stopped_in_any_thread():
    caught = []

    def work():
        try:
            read(ENDLESS, "boat")
        except ModelInvalid as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    assert len(caught) == 1
    assert not rendering_threads()


@pytest.mark.usefixtures("in_a_hurry")
def test_what_is_rendered_besides_the_rows_is_stopped_too():
    tokenizer = tiny.make_tokenizer(template=NESTED)
    with pytest.raises(ModelInvalid, match="within"):
        template_ending(tokenizer)
    with pytest.raises(ModelInvalid, match="within"):
        rendered_sha256(tokenizer, [None])


@pytest.mark.usefixtures("in_a_hurry")
def test_the_time_is_that_of_one_row():
    def task(number):
        time.sleep(0.15)
        return number

    tasks = [lambda number=number: task(number) for number in range(6)]
    assert limits.render_in_time(tasks, str) == list(range(6))


def test_an_error_of_a_task_is_raised_where_they_were_asked_for():
    with pytest.raises(ZeroDivisionError):
        limits.render_in_time([lambda: 1, lambda: 1 / 0], str)
    assert limits.render_in_time([], str) == []


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ("{{ 'x' * 10 ** 10 }}", r"raises a number to a power \(\*\*\)"),
        ("{{ 'x' * 10000000000 }}", "names the number 10000000000"),
        ("{{ 'x'.ljust(10_000_000_000) }}", "names the number 10_000_000_000"),
        ("{{ 'x' | center(0xFFFFFFFF) }}", "names the number 0xFFFFFFFF"),
    ],
)
def test_a_single_step_that_fills_the_memory_is_refused_before_it_is_taken(step, told):
    for use in (lambda: chat(step + tiny.TEMPLATE), lambda: read(step + tiny.TEMPLATE, "near")):
        with pytest.raises(ModelInvalid, match=told):
            use()


@pytest.mark.parametrize(
    "step", ["{{ dict(**{'a': 1}) | length }}", "{% set n = dict(a=1, **{'b': 2}) %}", "{{ 2 * 3 }}"]
)
def test_stars_that_are_no_power_are_taken(step):
    assert chat(step + tiny.TEMPLATE).status == "ok"


def test_several_templates_under_one_tokenizer_are_all_looked_at():
    with pytest.raises(ModelInvalid, match="power"):
        chat({"default": tiny.TEMPLATE, "tool_use": "{{ 2 ** 3 }}"})


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ("{{ 'x' * 900000 }}", r"makes \d+ characters of this conversation, which has \d+"),
        ("{{ 'x' * 999999 * 999999 * 999999 }}", "refuses this conversation"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "refuses this conversation"),
        ("{{ range(999999) | list }}", "refuses this conversation: Range too big"),
    ],
)
def test_a_template_that_writes_too_much_refuses_the_conversation(step, told):
    pair = chat(step + tiny.TEMPLATE)
    assert pair.status == "refused"
    assert re.search(told, pair.detail)


def test_long_texts_may_become_longer():
    text = "near " * 50_000
    twice = tiny.TEMPLATE.replace("m['content']", "m['content'] + m['content'] | tojson")
    assert len(chat(twice, text).chosen) > 50_000
