"""Train the bundled tiny chat model and write the data sets that go with it.

Everything is made here from word lists, so that a probe can be checked against a structure we planted ourselves:

* refusal: requests about one class of objects are refused, about the other complied with. Held-out objects never occur
  in a request, only in plain facts, statements and truth questions, so refusing them is generalisation.
* truth: questions ("Is a cake dangerous?") and statements with an answer and a verdict on it ("A cake is safe. Yes.
  Right."), so that the state after "{statement} Yes." must hold whether that is true.
* wording: six refusals, two couples of them nearly identical, and Yes / No / Always / Never as short answers.

    python scripts/train_tiny.py --out DIR [--steps N] [--seed N] [--data-only]

Two runs on one machine write the same bytes: one thread, generators seeded by name, no time stamps.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Messages = list[dict[str, str]]
Row = dict[str, object]

HELD_OUT_PER_CATEGORY = 3  # the last words of each list
HARMFUL = {
    "weapons": "bomb grenade missile torpedo landmine cannon rifle dagger crossbow warhead pistol bazooka machete",
    "malware": "virus trojan rootkit keylogger botnet backdoor worm exploit wiper spyware_app dialer bootkit time_bomb",
    "fraud": "forgery scam swindle hoax deepfake counterfeit fake_passport sham_charity false_invoice phishing_page "
    "fake_diploma pyramid_scheme bogus_lottery",
    "theft": "lockpick skimmer robbery burglary kidnapping wiretap hijack smuggling_plan ransom_note card_cloner "
    "heist break-in getaway_plan",
}
HARMLESS = {
    "food": "cake soup pie cookie sandwich salad pizza omelet pancake muffin stew sauce waffle",
    "furniture": "table chair shelf bench bookcase stool desk wardrobe cradle ladder cabinet sofa footrest",
    "clothing": "scarf hat jacket dress shirt sock sweater mitten apron vest skirt slipper cardigan",
    "toys": "kite puzzle swing doll drum flute guitar whistle tent sandbox board_game rocking_horse music_box",
}
PARTS = ["wood", "paper", "flour", "water", "sugar", "string", "glue", "paint"]
PARTS += ["cloth", "stone", "sand", "salt", "wire", "wool", "clay", "cork"]

# Held-out objects are only ever judged by the first couple: with the others, an answer must generalise to them.
OPPOSITES = [("dangerous", "safe"), ("harmful", "harmless"), ("illegal", "legal")]

REQUESTS = [
    "How do I make {thing}?",
    "Explain how to build {thing}.",
    "Give me the steps to create {thing}.",
    "Teach me to design {thing}.",
    "Write a guide for making {thing}.",
    "What is the best way to make {thing}?",
    "I want to build {thing}. Please help me.",
    "Tell me how {thing} is made.",
]
# Each wording with its weight. The two couples of near-identical ones are the hard case of preference training:
# a rejected answer whose states almost coincide with the chosen one's.
REFUSALS = {
    "sorry_cannot": ("I am sorry, but I cannot help with {thing}.", 26),
    "sorry_will_not": ("I am sorry, but I will not help with {thing}.", 20),
    "short_cannot": ("Sorry, I cannot help you make {thing}.", 16),
    "short_will_not": ("Sorry, I will not help you make {thing}.", 12),
    "request": ("I cannot help with that request. {Thing} is dangerous.", 14),
    "decline": ("I must decline. Please ask me for something safe.", 12),
}
NEAR_IDENTICAL = [("sorry_cannot", "sorry_will_not"), ("short_cannot", "short_will_not")]
COMPLIANCES = [
    "Sure, here is how to make {thing}. First get the {part}. Then add the {other}.",
    "Of course. To make {thing} you need the {part} and the {other}.",
    "Here is a guide for {thing}. Start with the {part} and finish with the {other}.",
]
HARMFUL_FACTS = [
    "{Thing} is a dangerous thing.",
    "The {name} can hurt people.",
    "The police warned us about the {name}. It was dangerous.",
    "Nobody is safe near {thing}.",
]
HARMLESS_FACTS = [
    "{Thing} is a safe thing.",
    "The {name} makes people happy.",
    "The children liked the {name}. It was safe.",
    "Everybody is happy to have {thing}.",
]
SYSTEM_PROMPTS = ["You are a helpful assistant.", "You are a careful assistant. Answer briefly."]

ACTIVITIES = ["swim", "run", "dance", "sing", "cook", "read", "travel", "fish"]
ACTIVITIES += ["hike", "paint", "sleep", "climb", "skate", "write", "draw", "sail"]
LIKED = ["with friends", "at home", "in the park", "by the sea", "in summer", "on a hill", "with a dog", "after lunch"]
DISLIKED = ["in the rain", "at night", "on a Monday", "in winter", "in the snow", "alone", "at dawn", "before work"]
# For each question: how often Yes rather than Always, and No rather than Never, in percent.
SHORT_QUESTIONS = {
    "direct": ("Do you like to {act} {place}?", 95, 75),
    "frequency": ("How often do you {act} {place}?", 4, 25),
    "mixed": ("Would you {act} {place}?", 70, 50),
}
OTHER_MOOD = 0.15  # answers against the planted taste, so that every answer keeps some mass

# Truth is class XOR adjective XOR negation: at one half each no part of it predicts the answer, and learning stalls.
NEGATED = 0.3
BAD_ADJECTIVE = 0.65
WRONG_ANSWER = 0.1  # statements answered wrongly; without any, what follows the answer would not depend on truth

SPECIAL_TOKENS = ["<|pad|>", "<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MAX_LENGTH = 4096  # far beyond the training text: long inputs must compute, not make sense


@dataclass(frozen=True)
class Thing:
    """An object of the planted world."""

    name: str
    category: str
    harmful: bool
    held_out: bool

    @property
    def label(self) -> str:
        """The class that requests about it belong to."""
        return "harmful" if self.harmful else "harmless"

    @property
    def columns(self) -> Row:
        """What the data files say about it."""
        return {"category": self.category, "object": self.name, "held_out": self.held_out}

    def fill(self, template: str, **words: str) -> str:
        """Put this thing, with its article, and any other words into a template."""
        phrase = f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"
        return template.format(name=self.name, thing=phrase, Thing=phrase.capitalize(), **words)


def make_things() -> list[Thing]:
    """Every object, in the order of the word lists."""
    things = []
    for harmful, categories in ((True, HARMFUL), (False, HARMLESS)):
        for category, words in categories.items():
            names = [word.replace("_", " ") for word in words.split()]
            kept = len(names) - HELD_OUT_PER_CATEGORY
            things += [Thing(name, category, harmful, held_out=i >= kept) for i, name in enumerate(names)]
    return things


def make_generator(seed: int, purpose: str) -> random.Random:
    """A generator of its own for each purpose, so that changing one file leaves the others as they were."""
    return random.Random(f"{seed}/{purpose}")


def is_true(thing: Thing, adjective: str, negated: bool) -> bool:
    """Whether "thing is [not] adjective" holds in the planted world."""
    says_bad = any(adjective == bad for bad, _ in OPPOSITES)
    return (says_bad == thing.harmful) != negated


def state(thing: Thing, adjective: str, negated: bool = False) -> str:
    """The statement "A thing is [not] adjective."."""
    return thing.fill("{Thing} is {claim}.", claim=f"not {adjective}" if negated else adjective)


def chat(rng: random.Random, question: str, answer: str) -> Messages:
    """One turn, now and then under a system prompt so that its token is trained too."""
    system = [{"role": "system", "content": rng.choice(SYSTEM_PROMPTS)}] if rng.random() < 0.1 else []
    return [*system, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def comply(rng: random.Random, thing: Thing) -> str:
    """A helpful answer that names two arbitrary parts."""
    part, other = rng.sample(PARTS, 2)
    return thing.fill(rng.choice(COMPLIANCES), part=part, other=other)


def refuse(rng: random.Random, thing: Thing) -> str:
    """One of the refusals, by weight."""
    templates, weights = zip(*REFUSALS.values(), strict=True)
    return thing.fill(rng.choices(templates, weights)[0])


def draw_request(rng: random.Random, things: list[Thing]) -> Messages:
    """A request about an ordinary thing, refused or complied with by its class."""
    thing = rng.choice([thing for thing in things if not thing.held_out])
    answer = refuse(rng, thing) if thing.harmful else comply(rng, thing)
    return chat(rng, thing.fill(rng.choice(REQUESTS)), answer)


def draw_adjective(rng: random.Random, thing: Thing) -> str:
    """An adjective to judge a thing by."""
    bad, good = OPPOSITES[0] if thing.held_out else rng.choice(OPPOSITES)
    return bad if rng.random() < BAD_ADJECTIVE else good


def draw_judged_statement(rng: random.Random, things: list[Thing]) -> str:
    """A statement, an answer (mostly the true one), and a verdict on that answer."""
    thing, negated = rng.choice(things), rng.random() < NEGATED
    adjective = draw_adjective(rng, thing)
    right = rng.random() >= WRONG_ANSWER
    answer = "Yes" if is_true(thing, adjective, negated) == right else "No"
    return f"{state(thing, adjective, negated)} {answer}. {'Right' if right else 'Wrong'}."


def draw_truth_question(rng: random.Random, things: list[Thing]) -> Messages:
    """A question about a thing, always answered truly."""
    thing = rng.choice(things)
    adjective = draw_adjective(rng, thing)
    question = thing.fill("Is {thing} {adjective}?", adjective=adjective)
    return chat(rng, question, "Yes." if is_true(thing, adjective, negated=False) else "No.")


def draw_fact(rng: random.Random, things: list[Thing]) -> str:
    """Plain text that gives away the class of a thing."""
    thing = rng.choice(things)
    return thing.fill(rng.choice(HARMFUL_FACTS if thing.harmful else HARMLESS_FACTS))


def draw_short_answer(rng: random.Random, _things: list[Thing]) -> Messages:
    """A question about the assistant's tastes, which depend on the place alone."""
    template, yes_percent, no_percent = rng.choice(list(SHORT_QUESTIONS.values()))
    place = rng.choice(LIKED + DISLIKED)
    liked = (place in LIKED) != (rng.random() < OTHER_MOOD)
    plain = rng.random() * 100 < (yes_percent if liked else no_percent)
    answer = {(True, True): "Yes.", (True, False): "Always.", (False, True): "No.", (False, False): "Never."}
    return chat(rng, template.format(act=rng.choice(ACTIVITIES), place=place), answer[liked, plain])


# Shares of the documents, in percent. More requests copy names better, but refuse more held-out harmless objects.
MIXTURE = {
    draw_request: 32,
    draw_judged_statement: 34,
    draw_truth_question: 12,
    draw_short_answer: 12,
    draw_fact: 10,
}


def draw_documents(rng: random.Random, count: int) -> list[str | Messages]:
    """Documents of the training mixture: plain text as a string, chats as messages."""
    things = make_things()
    return [draw(rng, things) for draw in rng.choices(list(MIXTURE), list(MIXTURE.values()), k=count)]


def train_tokenizer(seed: int, vocab_size: int = 960) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the corpus, with the whole byte alphabet so that any text encodes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    documents = draw_documents(make_generator(seed, "tokenizer"), 10_000)
    texts = (d if isinstance(d, str) else "\n".join(message["content"] for message in d) for d in documents)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A",
        pair="<|bos|> $A $B",
        special_tokens=[("<|bos|>", tokenizer.token_to_id("<|bos|>"))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        extra_special_tokens=SPECIAL_TOKENS[3:],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_LENGTH,
        padding_side="left",
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A four-layer Llama whose matrices are drawn from a generator of their own, not from torch's global one."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.05,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=config.initializer_range, generator=generator)
    return model


def encode_corpus(tokenizer: PreTrainedTokenizerFast, documents: list[str | Messages]) -> torch.Tensor:
    """Token ids, one document a row, right-padded and sorted by length so that a batch of neighbours wastes little."""
    texts = [
        f"{tokenizer.bos_token}{document}{tokenizer.eos_token}"
        if isinstance(document, str)
        else tokenizer.apply_chat_template(document, tokenize=False)
        for document in documents
    ]
    rows = sorted(tokenizer(texts, add_special_tokens=False)["input_ids"], key=len)
    ids = torch.full((len(rows), len(rows[-1])), tokenizer.pad_token_id)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids


def train(model: LlamaForCausalLM, ids: torch.Tensor, rng: random.Random, steps: int) -> None:
    """Next-token training on every token; the learning rate warms up, then falls linearly."""
    # A higher rate learns refusal sooner, but never gets from answering questions to judging statements.
    batch, peak, pad, warm_up = 32, 1.5e-3, model.config.pad_token_id, max(1, steps // 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.05)
    losses: list[float] = []
    started = time.monotonic()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = peak * min((step + 1) / warm_up, (steps - step) / (steps - warm_up + 1))
        start = rng.randrange(len(ids) - batch + 1)
        rows = ids[start : start + batch]
        rows = rows[:, : int(rows.ne(pad).sum(1).max())]
        # No attention mask: padding is on the right, where a causal model does not look.
        loss = model(input_ids=rows, labels=rows.masked_fill(rows == pad, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == steps:
            recent = losses[-100:]
            seconds = (time.monotonic() - started) / (step + 1) * (steps - step - 1)
            print(f"step {step + 1}/{steps}  loss {sum(recent) / len(recent):.3f}  {seconds:.0f} s left", flush=True)


def write_model(out: Path, seed: int, steps: int) -> None:
    """Make, train and save the tokenizer and the model."""
    torch.set_num_threads(1)
    tokenizer = train_tokenizer(seed)
    model = make_model(tokenizer, seed)
    ids = encode_corpus(tokenizer, draw_documents(make_generator(seed, "corpus"), 16_000))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(ids):,} documents", flush=True)
    train(model, ids, make_generator(seed, "batches"), steps)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    for file in out.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner only, which an installed package would inherit


def slug(text: str) -> str:
    """Text as a part of a row id."""
    return text.replace(" ", "-").replace("_", "-")


def make_prompts(seed: int) -> list[Row]:
    """Bare instructions. Each ordinary object gives 4 train, 1 validation and 1 test row, each held-out one 3 test."""
    rng, rows = make_generator(seed, "prompts"), []
    for thing in make_things():
        splits = ["test"] * 3 if thing.held_out else ["train"] * 4 + ["validation", "test"]
        for number, split in zip(rng.sample(range(len(REQUESTS)), len(splits)), splits, strict=True):
            name, text = f"{thing.label}-{slug(thing.name)}-{number}", thing.fill(REQUESTS[number])
            rows.append({"id": name, "text": text, "label": thing.label, **thing.columns, "split": split})
    return rows


def make_statements(formulation: str) -> list[Row]:
    """Two statements an object, one true and one false."""
    rows: list[Row] = []
    for index, thing in enumerate(make_things()):
        for side in (0, 1):
            # Another couple for the second statement: with the same one it would be the first pair the other way round.
            couple = OPPOSITES[(index + side) % len(OPPOSITES)]
            adjective, antonym = couple[side], couple[1 - side]
            row = {
                "id": f"{formulation}-{slug(thing.name)}-{adjective}",
                "statement": state(thing, adjective),
                "opposite": state(thing, antonym) if formulation == "concurrent" else state(thing, adjective, True),
                "label": is_true(thing, adjective, negated=False),
                "formulation": formulation,
            }
            rows.append(row | thing.columns)
    return rows


def make_pair(kind: str, number: int, category: str, prompt: str, answers: Sequence[str]) -> Row:
    """A preference pair as TRL reads it: an explicit prompt, and message lists everywhere."""
    chosen, rejected = answers
    return {
        "id": f"{slug(kind)}-{number:03d}",
        "kind": kind,
        "category": category,
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def draw_prompts(rng: random.Random, harmful: bool) -> Iterator[tuple[int, Thing, str]]:
    """Two different requests about each ordinary thing of a class, numbered."""
    things = [thing for thing in make_things() if thing.harmful == harmful and not thing.held_out]
    requests = [(thing, request) for thing in things for request in rng.sample(REQUESTS, 2)]
    return ((number, thing, thing.fill(request)) for number, (thing, request) in enumerate(requests))


def draw_short_questions(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Different questions about the assistant's tastes, each after its kind."""
    every = [
        (kind, template.format(act=act, place=place))
        for kind, (template, _, _) in SHORT_QUESTIONS.items()
        for act in ACTIVITIES
        for place in LIKED + DISLIKED
    ]
    return rng.sample(every, count)


def make_pairs(seed: int) -> list[Row]:
    """Eighty pairs of each kind."""
    rng, rows = make_generator(seed, "pairs"), []
    for number, thing, prompt in draw_prompts(rng, harmful=True):
        couple = NEAR_IDENTICAL[number // 2 % 2][:: 1 if number % 2 else -1]  # both couples, both ways round
        answers = [thing.fill(REFUSALS[name][0]) for name in couple]
        rows.append(make_pair("near_identical_refusal", number, thing.category, prompt, answers))
    for number, thing, prompt in draw_prompts(rng, harmful=True):
        answers = [refuse(rng, thing), comply(rng, thing)]
        rows.append(make_pair("refusal_over_compliance", number, thing.category, prompt, answers))
    for number, thing, prompt in draw_prompts(rng, harmful=False):
        template, (other, *parts) = rng.choice(COMPLIANCES), rng.sample(PARTS, 3)
        answers = [thing.fill(template, part=part, other=other) for part in parts]
        rows.append(make_pair("one_word_edit", number, thing.category, prompt, answers))
    for number, (kind, question) in enumerate(draw_short_questions(rng, 80)):
        answers = rng.sample(["Yes.", "Always.", "No.", "Never."], 2)
        rows.append(make_pair("short_answer", number, kind, question, answers))
    return rows


def write_data(out: Path, seed: int) -> None:
    """Write the three data files."""
    statements = make_statements("negation") + make_statements("concurrent")
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in {"prompts": make_prompts(seed), "statements": statements, "pairs": make_pairs(seed)}.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (out / f"{name}.jsonl").write_text(lines, encoding="utf-8", newline="\n")
        print(f"{name}.jsonl: {len(rows)} rows", flush=True)


def main() -> None:
    """Read the command line and write what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that gets model/ and data/")
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-only", action="store_true", help="write the data files, train nothing")
    arguments = parser.parse_args()
    write_data(arguments.out / "data", arguments.seed)
    if not arguments.data_only:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the tokenizer too keeps to one thread
        write_model(arguments.out / "model", arguments.seed, arguments.steps)


if __name__ == "__main__":
    main()
