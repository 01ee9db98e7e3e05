"""Conversations in the chat formats of six families have the tokens that TRL's DPOTrainer trains on."""

import copy

import pytest
import tiny
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from probing import PreferencePair
from probing.tokens.pairs import tokenize_pairs

CHATML_WITH_BOS = """\
{%- for m in messages -%}
{{ bos_token + m.role + '\n' + m.content + eos_token + '\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ bos_token + 'assistant\n' }}{%- endif -%}"""
LLAMA_2 = """\
{%- set ns = namespace(system='') -%}
{%- for m in messages -%}
{%- if m.role == 'system' -%}
  {%- set ns.system = '<<SYS>>\n' + m.content + '\n<</SYS>>\n\n' -%}
{%- elif m.role == 'user' -%}
  {{ bos_token + '[INST] ' + ns.system + m.content.strip() + ' [/INST]' }}{%- set ns.system = '' -%}
{%- else -%}
  {{ ' ' + m.content.strip() + ' ' + eos_token }}
{%- endif -%}
{%- endfor -%}"""
LLAMA_3 = """\
{{- bos_token -}}
{%- for m in messages -%}
{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + eos_token }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif -%}"""
GEMMA = """\
{{- bos_token -}}
{%- for m in messages -%}
{%- if m.role == 'system' -%}{{ raise_exception('no system turns here') }}{%- endif -%}
{%- set name = 'model' if m.role == 'assistant' else m.role -%}
{{ '<start_of_turn>' + name + '\n' + m.content | trim + '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"""
MISTRAL = """\
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}
  {%- set before = messages[0].content + '\n\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}
  {%- set before = '' -%}{%- set turns = messages -%}
{%- endif -%}
{%- for m in turns -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('turns must alternate') }}{%- endif -%}
{%- if m.role == 'user' -%}{{ '[INST]' + (before if loop.first else '') + m.content + '[/INST]' }}
{%- else -%}{{ ' ' + m.content + eos_token }}{%- endif -%}
{%- endfor -%}"""
QWEN_3 = """\
{%- set ns = namespace(asked=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.asked = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{%- set said = m.content.split('</think>')[-1].lstrip('\n') if m.role == 'assistant' else m.content -%}
{%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in m.content else '' -%}
{{ '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' and loop.index0 > ns.asked and (loop.last or thought) -%}
{{ '<think>\n' + thought + '\n</think>\n\n' }}
{%- endif -%}
{{ said + eos_token + '\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking -%}{{ '<think>\n\n</think>\n\n' }}{%- endif -%}
{%- endif -%}"""
# Template, BOS, EOS, further special tokens, how often the BOS stands in a conversation with two exchanges.
FAMILIES = {
    "chatml": (CHATML_WITH_BOS, "<|im_start|>", "<|im_end|>", [], 4),
    "llama_2": (LLAMA_2, "<s>", "</s>", [], 2),
    "llama_3": (LLAMA_3, "<|begin_of_text|>", "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>"], 1),
    "gemma": (GEMMA, "<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"], 1),
    "mistral": (MISTRAL, "<s>", "</s>", ["[INST]", "[/INST]"], 1),
    "qwen_3": (QWEN_3, None, "<|im_end|>", ["<|im_start|>", "<think>", "</think>"], 0),
}
SYSTEM = {"role": "system", "content": "Never build a boat."}
ASKED = {"role": "user", "content": "Is it ok?"}
ANSWERED = {"role": "assistant", "content": "<think>\nhelp\n</think>\n\nYes, always."}
AGAIN = {"role": "user", "content": " The newest answer? "}
OPENINGS = [[ASKED], [ASKED, ANSWERED, AGAIN], [SYSTEM, ASKED], [SYSTEM, ASKED, ANSWERED, AGAIN]]
ANSWERS = [
    ("No. Never.", "Sure, here is how."),
    ("<think>\nIs it near?\n</think>\n\nNo.", " I am sorry, but I cannot help."),
]


def make_tokenizer(family):
    template, bos, eos, others, _ = FAMILIES[family]
    tokenizer = tiny.make_tokenizer(bos=False, template=template)
    tokenizer.add_special_tokens({"eos_token": eos, "additional_special_tokens": others})
    tokenizer.bos_token = bos
    if bos is not None:
        tokenizer.add_special_tokens({"bos_token": bos})
    return tokenizer


def conversations(family, **further):
    openings = [opening for opening in OPENINGS if family != "gemma" or SYSTEM not in opening]
    return [
        {
            "prompt": opening,
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
            **further,
        }
        for opening in openings
        for chosen, rejected in ANSWERS
    ]


def trl_tokens(tokenizer, rows, folder):
    """Prompt, chosen and rejected of each row, as the trainer prepares them."""
    model = tiny.make_model(tokenizer=tokenizer, vocab_size=len(tokenizer)).model
    settings = DPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = DPOTrainer(
        model=model,
        ref_model=copy.deepcopy(model),
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    return [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in trainer.train_dataset]


# What TRL sets by default, or passes on, is about to be renamed in transformers.
@pytest.mark.filterwarnings(r"ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("family", "further"),
    [*((family, {}) for family in FAMILIES), ("qwen_3", {"chat_template_kwargs": {"enable_thinking": False}})],
)
def test_tokens_are_those_of_trl(family, further, tmp_path):
    tokenizer, rows = make_tokenizer(family), conversations(family, **further)
    pairs = tokenize_pairs(tokenizer, [PreferencePair(str(number), **row) for number, row in enumerate(rows)])
    assert {pair.status for pair in pairs} == {"ok"}
    expected = trl_tokens(tokenizer, rows, tmp_path)
    assert len(expected) == len(pairs)
    for pair, tokens in zip(pairs, expected, strict=True):
        border = pair.prompt_tokens
        assert (pair.chosen[:border], pair.chosen[border:], pair.rejected[border:]) == tokens
        assert pair.rejected[:border] == tokens[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_templates_write_bos_as_the_families_do(family):
    tokenizer, count = make_tokenizer(family), FAMILIES[family][-1]
    row = conversations(family)[0] | {"prompt": [ASKED, ANSWERED, AGAIN]}
    pair = tokenize_pairs(tokenizer, [PreferencePair("x", **row)])[0]
    assert pair.chosen.count(tokenizer.bos_token_id) == count


@pytest.mark.parametrize("family", [family for family in FAMILIES if FAMILIES[family][1] is not None])
@pytest.mark.parametrize("part", ["prompt", "chosen", "rejected"])
def test_a_bos_of_the_data_is_found_in_every_family(family, part):
    tokenizer = make_tokenizer(family)
    row = copy.deepcopy(conversations(family)[0])
    row[part][-1]["content"] += f" see {tokenizer.bos_token} there"
    pair = tokenize_pairs(tokenizer, [PreferencePair("x", **row)])[0]
    assert pair.status == "extra_bos"
    assert f"'{part}'" in pair.detail


def test_a_system_turn_that_gemma_refuses_is_a_status():
    row = conversations("gemma")[0]
    pair = PreferencePair("x", **(row | {"prompt": [SYSTEM, *row["prompt"]]}))
    assert tokenize_pairs(make_tokenizer("gemma"), [pair])[0].status == "refused"
