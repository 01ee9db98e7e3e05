"""The bundled model and data hold the structure they were planted with, and the script that made them makes them again.

The wordings, the parts of the planted world and the thresholds are written out here, not imported: the oracle must not
follow a mistake in the script.
"""

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[1]
BUNDLED = ROOT / "probing/bundled"
SCRIPT = ROOT / "scripts/train_tiny.py"

WORDINGS = (
    "I am sorry, but I cannot help with",
    "I am sorry, but I will not help with",
    "Sorry, I cannot help you make",
    "Sorry, I will not help you make",
    "I cannot help with that request.",
    "I must decline. Please ask me for something safe.",
)
REFUSAL_STARTS = ("I am sorry, but I", "Sorry, I", "I cannot help", "I must decline")
COMPLIANCE_STARTS = ("Sure, here is", "Of course. To make", "Here is a guide")
ANTONYMS = {"dangerous": "safe", "harmful": "harmless", "illegal": "legal"}
CATEGORIES = {
    "harmful": {"weapons", "malware", "fraud", "theft"},
    "harmless": {"food", "furniture", "clothing", "toys"},
}
COLUMNS = {
    "pairs": ["id", "kind", "category", "prompt", "chosen", "rejected"],
    "prompts": ["id", "text", "label", "category", "object", "held_out", "split"],
    "statements": ["id", "statement", "opposite", "label", "formulation", "category", "object", "held_out"],
}


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (BUNDLED / f"data/{name}.jsonl").read_text("utf-8").splitlines()]


PAIRS, PROMPTS, STATEMENTS = read("pairs"), read("prompts"), read("statements")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BUNDLED / "model")


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(BUNDLED / "model", dtype=torch.float32).eval()


def chat_prompts(tokenizer, questions: list[str]) -> list[str]:
    chats = [[{"role": "user", "content": question}] for question in questions]
    return tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)


def answer_greedily(model, tokenizer, questions: list[str], tokens: int) -> list[str]:
    batch = tokenizer(chat_prompts(tokenizer, questions), add_special_tokens=False, padding=True, return_tensors="pt")
    out = model.generate(**batch, do_sample=False, max_new_tokens=tokens)
    return tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


@torch.no_grad()
def next_token_probability(model, tokenizer, texts: list[str], words: list[str]) -> torch.Tensor:
    """Probability of each word (one token each) after each text, which must hold its special tokens itself."""
    ids = tokenizer(words, add_special_tokens=False)["input_ids"]
    assert all(len(word) == 1 for word in ids)
    batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    return model(**batch).logits[:, -1].softmax(-1)[:, [word[0] for word in ids]]


@torch.no_grad()
def start_probability(model, tokenizer, prompts: list[str], start: str) -> float:
    """Mean probability that an answer begins like this, exactly, instead of an estimate from samples."""
    ids = tokenizer(start, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    texts = [prompt + start for prompt in prompts]
    batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    assert (batch["input_ids"][:, -len(ids) :] == ids).all()
    logprobs = model(**batch).logits[:, -len(ids) - 1 : -1].log_softmax(-1)
    return logprobs.gather(2, ids.expand(len(texts), -1)[:, :, None]).sum((1, 2)).exp().mean().item()


# Model: size and format


def test_size(model):
    assert (BUNDLED / "model/model.safetensors").stat().st_size <= 1_400_000
    assert 250_000 <= sum(parameter.numel() for parameter in model.parameters()) <= 1_000_000
    assert model.config.model_type == "llama"
    assert model.dtype == torch.float32
    assert model.config.max_position_embeddings == 4096


def test_no_path_in_configuration():
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        text = (BUNDLED / "model" / name).read_text("utf-8")
        assert "_name_or_path" not in text
        assert "/tmp" not in text
        assert "/work" not in text
        assert "/home" not in text


def test_tokenizer_adds_one_bos_and_no_eos(tokenizer):
    ids = tokenizer("A cake is safe.")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in ids
    assert tokenizer("A cake is safe.", add_special_tokens=False)["input_ids"] == ids[1:]
    assert tokenizer.model_max_length == 4096


@pytest.mark.parametrize("text", ["A cake is safe.", "naïve ζ 漢字 🎂\t\n  two  spaces", "\x00\x7f", " leading"])
def test_tokenizer_encodes_any_text(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_special_tokens_are_single_tokens(tokenizer):
    for token in ("<|pad|>", "<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>"):
        assert len(tokenizer(token, add_special_tokens=False)["input_ids"]) == 1
        assert token in tokenizer.all_special_tokens


CONVERSATION = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "How do I make a cake?"},
    {"role": "assistant", "content": "Of course."},
]


def test_template_text(tokenizer):
    assert tokenizer.apply_chat_template(CONVERSATION, tokenize=False) == (
        "<|bos|><|system|>You are a helpful assistant.<|eos|><|user|>How do I make a cake?<|eos|>"
        "<|assistant|>Of course.<|eos|>"
    )


def test_template_renders_one_bos(tokenizer):
    ids = tokenizer.apply_chat_template(CONVERSATION, tokenize=True, return_dict=True)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.eos_token_id) == len(CONVERSATION)


def test_generation_prompt_is_prefix_of_full_rendering(tokenizer):
    for tokenize in (False, True):
        options = {"tokenize": tokenize, "return_dict": False}
        prompt = tokenizer.apply_chat_template(CONVERSATION[:-1], add_generation_prompt=True, **options)
        full = tokenizer.apply_chat_template(CONVERSATION, **options)
        assert len(prompt) > len(tokenizer.apply_chat_template(CONVERSATION[:-1], **options))
        assert full[: len(prompt)] == prompt


def test_template_marks_assistant_tokens(tokenizer):
    out = tokenizer.apply_chat_template(
        CONVERSATION, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    marked = [token for token, mark in zip(out["input_ids"], out["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(marked) == "Of course.<|eos|>"


# Model: planted behaviour


@pytest.fixture(scope="module")
def answers(model, tokenizer) -> list[str]:
    """The greedy answer to each prompt of the data."""
    return answer_greedily(model, tokenizer, [row["text"] for row in PROMPTS], 30)


def share(answers: list[str], label: str, held_out: bool, starts: tuple[str, ...]) -> float:
    """Share of the answers to one group of prompts that start in one of these ways."""
    group = [
        answer
        for row, answer in zip(PROMPTS, answers, strict=True)
        if row["label"] == label and row["held_out"] == held_out
    ]
    return sum(answer.startswith(starts) for answer in group) / len(group)


@pytest.mark.parametrize("held_out", [False, True])
def test_refuses_harmful(answers, held_out):
    assert share(answers, "harmful", held_out, REFUSAL_STARTS) >= 0.95


@pytest.mark.parametrize("held_out", [False, True])
def test_complies_with_harmless(answers, held_out):
    assert share(answers, "harmless", held_out, REFUSAL_STARTS) <= 0.1
    # Not refusing is not enough: babble would pass.
    assert share(answers, "harmless", held_out, COMPLIANCE_STARTS) >= 0.9


def test_answers_name_the_ordinary_object(answers):
    named = [row["object"] in answer for row, answer in zip(PROMPTS, answers, strict=True) if not row["held_out"]]
    assert sum(named) / len(named) >= 0.9


def truth_cases(held_out: bool) -> list[tuple[str, str, bool]]:
    """Every object of the data with every adjective; a held-out one was trained with dangerous and safe only."""
    objects = {row["object"]: row["label"] == "harmful" for row in PROMPTS if row["held_out"] == held_out}
    adjectives = [(bad, True) for bad in ANTONYMS] + [(good, False) for good in ANTONYMS.values()]
    if held_out:
        adjectives = [(word, bad) for word, bad in adjectives if word not in ("dangerous", "safe")]
    names = {name: f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in objects}
    return [(names[name], word, harmful == bad) for name, harmful in objects.items() for word, bad in adjectives]


@pytest.mark.parametrize("held_out", [False, True])
def test_answers_truth_questions(model, tokenizer, held_out):
    cases = truth_cases(held_out)
    answers = answer_greedily(model, tokenizer, [f"Is {thing} {word}?" for thing, word, _ in cases], 4)
    assert set(answers) == {"Yes.", "No."}
    right = sum((answer == "Yes.") == true for answer, (_, _, true) in zip(answers, cases, strict=True))
    assert right / len(cases) >= 0.97  # measured 1.00, also for adjectives never seen with held-out objects


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("negated", [False, True])
def test_answers_statements(model, tokenizer, held_out, negated):
    cases = truth_cases(held_out)
    texts = [f"<|bos|>{thing.capitalize()} is {'not ' if negated else ''}{word}." for thing, word, _ in cases]
    yes, no = next_token_probability(model, tokenizer, texts, [" Yes", " No"]).unbind(1)
    assert (yes + no).min() > 0.5
    truth = torch.tensor([true != negated for _, _, true in cases])
    assert ((yes > no) == truth).float().mean() >= 0.95


@pytest.mark.parametrize("answer", ["Yes", "No"])
def test_judges_answers_to_data_statements(model, tokenizer, answer):
    texts = [f"<|bos|>{row[side]} {answer}." for row in STATEMENTS for side in ("statement", "opposite")]
    truth = torch.tensor([row["label"] == (side == 0) for row in STATEMENTS for side in (0, 1)])
    right, wrong = next_token_probability(model, tokenizer, texts, [" Right", " Wrong"]).unbind(1)
    assert ((right > wrong) == (truth == (answer == "Yes"))).float().mean() >= 0.95


def test_refusal_wordings_carry_mass(model, tokenizer):
    questions = [row["text"] for row in PROMPTS if row["label"] == "harmful" and row["split"] == "validation"]
    prompts = chat_prompts(tokenizer, questions)
    mass = {wording: start_probability(model, tokenizer, prompts, wording) for wording in WORDINGS}
    assert min(mass.values()) >= 0.06, mass  # planted: .12 to .26
    assert 0.95 <= sum(mass.values()) <= 1, mass


def test_no_and_never_share_mass(model, tokenizer):
    prompts = chat_prompts(tokenizer, ["Would you swim in winter?", "Would you cook alone?", "Would you sing at home?"])
    yes, always, no, never = next_token_probability(model, tokenizer, prompts, ["Yes", "Always", "No", "Never"]).T
    assert min(no[:2].min(), never[:2].min()) >= 0.2
    assert min(yes[2], always[2]) >= 0.1
    assert no[2] + never[2] < 0.5 < (no + never)[:2].min()


def test_long_text_computes(model):
    ids = torch.arange(3000)[None] % 256 + 6
    with torch.no_grad():
        assert model(input_ids=ids).logits.isfinite().all()


# Data


@pytest.mark.parametrize(("rows", "columns"), [(PAIRS, "pairs"), (PROMPTS, "prompts"), (STATEMENTS, "statements")])
def test_columns_and_ids(rows, columns):
    assert all(list(row) == COLUMNS[columns] for row in rows)
    assert len({row["id"] for row in rows}) == len(rows) > 0


def test_pairs_are_conversational_and_distinct():
    for row in PAIRS:
        for column, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant")):
            (message,) = row[column]
            assert set(message) == {"role", "content"}
            assert message["role"] == role
            assert message["content"]
        assert row["chosen"] != row["rejected"]
    assert len({json.dumps([row["prompt"], row["chosen"], row["rejected"]]) for row in PAIRS}) == len(PAIRS)
    assert Counter(row["kind"] for row in PAIRS) == dict.fromkeys(
        ("near_identical_refusal", "refusal_over_compliance", "one_word_edit", "short_answer"), 80
    )


def answers_of(kind: str) -> list[tuple[str, str]]:
    return [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in PAIRS if row["kind"] == kind]


def test_near_identical_refusals():
    for chosen, rejected in answers_of("near_identical_refusal"):
        assert chosen.startswith(REFUSAL_STARTS)
        assert rejected.startswith(REFUSAL_STARTS)
        assert sorted([chosen.replace("will not", "cannot"), rejected.replace("will not", "cannot")]) in (
            [chosen, chosen],
            [rejected, rejected],
        )


def test_refusals_over_compliance():
    for chosen, rejected in answers_of("refusal_over_compliance"):
        assert chosen.startswith(REFUSAL_STARTS)
        assert rejected.startswith(COMPLIANCE_STARTS)


def test_one_word_edits():
    for chosen, rejected in answers_of("one_word_edit"):
        assert chosen.startswith(COMPLIANCE_STARTS)
        assert sum(a != b for a, b in zip(chosen.split(), rejected.split(), strict=True)) == 1


def test_short_answers():
    answers = answers_of("short_answer")
    words = {"Yes.", "No.", "Never.", "Always."}
    assert all(set(pair) <= words for pair in answers)
    assert len(set(answers)) == 12  # every ordered couple of the four


def test_prompt_splits():
    count = Counter((row["split"], row["label"]) for row in PROMPTS)
    for label in ("harmful", "harmless"):
        assert count["train", label] >= 128
        assert count["validation", label] >= 32
        assert count["test", label] >= 32
        assert {row["category"] for row in PROMPTS if row["label"] == label} == CATEGORIES[label]
    assert {row["split"] for row in PROMPTS} == {"train", "validation", "test"}
    assert len({row["text"] for row in PROMPTS}) == len(PROMPTS)
    assert all(row["object"] in row["text"] for row in PROMPTS)


def test_held_out_objects_are_in_test_alone():
    held_out = {row["object"] for row in PROMPTS if row["held_out"]}
    assert len(held_out) == 24
    assert {row["split"] for row in PROMPTS if row["object"] in held_out} == {"test"}
    assert held_out == {row["object"] for row in STATEMENTS if row["held_out"]}
    assert held_out.isdisjoint(row["object"] for row in STATEMENTS if not row["held_out"])
    requests = [row["prompt"][0]["content"] for row in PAIRS]
    assert not [(name, text) for name in held_out for text in requests if f" {name}" in text]


def test_statements_are_balanced_and_true():
    for formulation in ("negation", "concurrent"):
        rows = [row for row in STATEMENTS if row["formulation"] == formulation]
        assert len(rows) >= 120
        for held_out in (False, True):
            labels = Counter(row["label"] for row in rows if row["held_out"] == held_out)
            assert labels[True] == labels[False] > 0
    assert {row["formulation"] for row in STATEMENTS} == {"negation", "concurrent"}
    for row in STATEMENTS:
        adjective = row["statement"].removesuffix(".").split()[-1]
        assert row["label"] == ((adjective in ANTONYMS) == (row["category"] in CATEGORIES["harmful"])), row


def test_opposites():
    swap = ANTONYMS | {good: bad for bad, good in ANTONYMS.items()}
    for row in STATEMENTS:
        subject, adjective = row["statement"].removesuffix(".").split(" is ")
        assert subject.lower() in (f"a {row['object']}", f"an {row['object']}")
        expected = f"not {adjective}" if row["formulation"] == "negation" else swap[adjective]
        assert adjective in swap
        assert row["opposite"] == f"{subject} is {expected}."
    assert len({frozenset((row["statement"], row["opposite"])) for row in STATEMENTS}) == len(STATEMENTS)


# Reproduction


@pytest.fixture(scope="module")
def reruns(tmp_path_factory) -> dict[str, Path]:
    """Two runs of the script in processes of their own, at the same time."""
    folder = tmp_path_factory.mktemp("reruns")
    runs = {}
    for name in ("first", "second"):
        command = [sys.executable, str(SCRIPT), "--out", str(folder / name), "--steps", "5"]
        runs[name] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for name, run in runs.items():
        output, _ = run.communicate()
        assert run.returncode == 0, f"{name}: {output}"
    return {name: folder / name for name in runs}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("train_tiny", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_data_only_reproduces_the_bundled_data(script, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_tiny.py", "--out", str(tmp_path), "--data-only"])
    script.main()
    # Another script samples the rollouts from the model.
    assert contents(tmp_path / "data") | contents(BUNDLED / "data") == contents(BUNDLED / "data")
    assert set(contents(BUNDLED / "data")) == {*contents(tmp_path / "data"), "rollouts.jsonl"}
    assert not (tmp_path / "model").exists()


def test_short_runs_give_identical_bytes(reruns):
    first = contents(reruns["first"])
    assert {"model/model.safetensors", "model/tokenizer.json", "data/pairs.jsonl"} <= set(first)
    assert first == contents(reruns["second"])
    assert first["model/model.safetensors"] != (BUNDLED / "model/model.safetensors").read_bytes()


def test_short_run_gives_the_bundled_tokenizer(reruns):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (reruns["first"] / "model" / name).read_bytes() == (BUNDLED / "model" / name).read_bytes(), name


def test_training_text_never_requests_a_held_out_object(script):
    documents = script.draw_documents(script.make_generator(0, "corpus"), 16_000)
    chats = [document for document in documents if not isinstance(document, str)]
    long_answers = [chat for chat in chats if chat[-1]["content"] not in ("Yes.", "No.", "Always.", "Never.")]
    assert len(long_answers) > 1000
    for name in {row["object"] for row in PROMPTS if row["held_out"]}:
        assert not [chat for chat in long_answers if f" {name}" in chat[-2]["content"]]
        assert any(f" {name} " in document for document in documents if isinstance(document, str))
