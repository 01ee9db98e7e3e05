import json

import pytest
import torch

from probing.data.bundled import bundled_data, bundled_model
from probing.engine.ablation import ablate
from probing.errors import OutOfMemory, UsageError
from probing.instruments import answers
from probing.instruments.answers import (
    Generator,
    LogitReader,
    diverge,
    mean_by_row,
    measure_cross_entropy,
    predict_answer,
    score_first_tokens,
)
from probing.instruments.directions import refusal_log_odds
from probing.models.load import load

ROWS = [json.loads(line) for line in bundled_data("prompts").read_text().splitlines()]
TEXTS = [row["text"] for row in ROWS[::41]][:6]


@pytest.fixture(scope="module")
def model():
    return load(str(bundled_model()), dtype="float32")


@pytest.fixture(scope="module")
def prompts(model):
    return [
        model.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for text in TEXTS
    ]


def answer_plainly(model, ids, new_tokens):
    """The most likely token, again and again, without a cache: the definition."""
    written = []
    with torch.no_grad():
        for _ in range(new_tokens):
            logits = model.model(input_ids=torch.tensor([[*ids, *written]]), use_cache=False).logits[0, -1]
            written.append(int(logits.argmax()))
            if written[-1] == model.tokenizer.eos_token_id:
                return written[:-1], True
    return written, False


@pytest.mark.parametrize("static", [True, False])
def test_answers_are_those_of_a_plain_loop_in_any_batch(model, prompts, static):
    generator = Generator(model, 24)
    assert generator.static
    generator.static = static
    assert len({len(prompt) for prompt in prompts}) > 1
    together = generator.write(prompts)
    assert any(each.ended for each in together)
    assert len({len(each.ids) for each in together}) > 1
    for prompt, found in zip(prompts, together, strict=True):
        assert (found.ids, found.ended) == answer_plainly(model, prompt, 24)
        assert generator.write([prompt]) == [found]
    generator.batch_tokens = 80
    assert generator.write(prompts[::-1])[::-1] == together


def test_the_model_and_its_tokenizer_stay_as_they_were(model, prompts, monkeypatch):
    config = model.model.generation_config
    before = config.to_dict(), model.tokenizer.padding_side, model.model.training
    plain = Generator(model, 6).write(prompts)
    # Penalties of the model's own config would make other answers.
    monkeypatch.setattr(config, "repetition_penalty", 5.0)
    monkeypatch.setattr(config, "do_sample", True)
    assert Generator(model, 6).write(prompts) == plain
    monkeypatch.undo()
    assert model.model.generation_config is config
    assert (config.to_dict(), model.tokenizer.padding_side, model.model.training) == before
    with pytest.raises(KeyboardInterrupt):
        Generator(model, 6).write(prompts, interrupt)
    assert model.model.generation_config is config


def interrupt(rows, tokens):
    raise KeyboardInterrupt


def test_fewer_rows_where_memory_runs_out(model, prompts, monkeypatch, caplog):
    expected = Generator(model, 4).write(prompts)
    generator = Generator(model, 4)
    plain = generator._run

    def fit_two(some):
        if len(some) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return plain(some)

    monkeypatch.setattr(generator, "_run", fit_two)
    assert generator.write(prompts) == expected
    assert "out of memory with 6 answers at once: going on with 3" in caplog.text

    def fit_none(some):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(generator, "_run", fit_none)
    with pytest.raises(OutOfMemory, match="a single prompt"):
        generator.write(prompts)


def test_a_cache_that_grows_is_said_aloud(model, monkeypatch, caplog):
    monkeypatch.setattr(type(model.model), "_can_compile_fullgraph", False)
    assert Generator(model, 4).how == "greedy, dynamic cache"
    assert "no static cache" in caplog.text


def test_what_does_not_generate_is_refused(model, monkeypatch):
    monkeypatch.setattr(type(model.model), "can_generate", classmethod(lambda cls: False))
    with pytest.raises(UsageError, match="does not generate"):
        Generator(model, 4)


def test_hooks_work_on_answers_and_scores(model, prompts):
    direction = 5 * torch.randn(64, generator=torch.Generator().manual_seed(1))
    reader = LogitReader.open(model)
    ids = [5, 9]
    scores, base = score_first_tokens(reader, prompts, ids)
    plain = Generator(model, 6).write(prompts)
    with ablate(model, direction, "add", layers=2):
        edited = Generator(model, 6).write(prompts)
        for prompt, found in zip(prompts, edited, strict=True):
            assert (found.ids, found.ended) == answer_plainly(model, prompt, 6)
        moved, states = score_first_tokens(reader, prompts, ids)
        torch.testing.assert_close(moved, refusal_log_odds(model, TEXTS, ids), rtol=1e-5, atol=1e-5)
    assert edited != plain
    torch.testing.assert_close(scores, refusal_log_odds(model, TEXTS, ids), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(moved, scores, atol=1e-2)
    assert (diverge(base, reader.head, states, reader.head) > 1e-4).all()
    assert diverge(base, reader.head, base, reader.head).abs().max() < 1e-12


def test_divergence_over_an_answer_is_that_of_plain_logits(model, prompts):
    given = [[7, 8, 9], [], [4]]
    reader = LogitReader.open(model)
    segments = [predict_answer(prompt, answer) for prompt, answer in zip(prompts, given, strict=False)]
    counts = [segment.stop - segment.start for segment in segments]
    assert counts == [3, 1, 1]
    direction = torch.randn(64, generator=torch.Generator().manual_seed(2))
    base = reader.read(segments)

    def plain_logits():
        rows = []
        for segment in segments:
            with torch.no_grad():
                logits = model.model(input_ids=torch.tensor([segment.ids])).logits[0]
            rows.append(logits[segment.start : segment.stop].double().log_softmax(1))
        return rows

    own = plain_logits()
    with ablate(model, direction):
        found = mean_by_row(diverge(base, reader.head, reader.read(segments), reader.head), counts)
        other = plain_logits()
    expected = [float((p.exp() * (p - q)).sum(1).mean()) for p, q in zip(own, other, strict=True)]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_cross_entropy_is_that_of_plain_logits(model, prompts, monkeypatch):
    monkeypatch.setattr(answers, "WINDOWS", 2)
    reader = LogitReader.open(model)
    sums, counts = measure_cross_entropy(reader, prompts[:3])
    assert counts == [len(prompt) - 1 for prompt in prompts[:3]]
    for prompt, total in zip(prompts, sums, strict=False):
        with torch.no_grad():
            logits = model.model(input_ids=torch.tensor([prompt])).logits[0, :-1].double()
        assert total == pytest.approx(
            float(torch.nn.functional.cross_entropy(logits, torch.tensor(prompt[1:]), reduction="sum")), rel=1e-5
        )
