import json
import math
import shutil
import sys

import numpy as np
import oracles
import pandas as pd
import peft
import pytest
import scipy
import tiny
import torch
from harness import note_calls, read_lines, write

from probing import load, score_pairs
from probing.data.bundled import bundled_data
from probing.errors import DataInvalid, ModelInvalid, NotFinite, SourceMismatch, StoreCorrupt, UsageError
from probing.instruments import pair_changes, pair_scores
from probing.models.load import LanguageModel
from probing.report.changes import average_changes
from probing.runs import displacement
from probing.runs.displacement.config import DisplacementConfig
from probing.runs.displacement.tables import measure_largest_drop

WORDS = ["near", "nearer", "never", "no", "yes", "always", "sorry", "help", "boat", "glue"]
ROWS = [
    {
        "id": f"r{n}",
        "prompt": f"Q: {WORDS[n % 7]}",
        "chosen": "".join(f" {WORDS[(n * k) % 10]}" for k in range(1, 2 + n % 5)),
        "rejected": "".join(f" {WORDS[(n + 3 * k) % 10]}" for k in range(1, 3 + n % 3)),
        "kind": "even" if n % 2 == 0 else "odd",
        "share": 0.5 + (n % 5) / 10,
    }
    for n in range(12)
]
SUMMARY = "From reference to policy, with 95 % bootstrap intervals over "
"""Beginning of a title; it ends in what the intervals are over."""
WENT = "Where their probability went, at the token that lost most"
RANKED = "Rank correlation of scores of the reference with the change of ln p(chosen)"


def moved(amount=0.05, seed=1):
    """The tiny model after a random step, as if trained."""
    language_model = tiny.make_model()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in language_model.model.parameters():
            parameter.add_(amount * torch.randn(parameter.shape, generator=generator))
    return language_model


def save(language_model, folder, tokenizer=True):
    language_model.model.save_pretrained(folder)
    if tokenizer:
        language_model.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory):
    return save(moved(), tmp_path_factory.mktemp("policies") / "policy")


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "pairs.jsonl", ROWS)


@pytest.fixture
def config(model_folder, policy_folder, data, tmp_path):
    def make(**changes):
        values = {"reference": str(model_folder), "data": str(data), "out": tmp_path / "out", "shard_pairs": 5}
        if not {"adapter", "steps"} & set(changes):
            values["policy"] = str(policy_folder)
        return DisplacementConfig(**(values | changes))

    return make


def summary(report):
    return summary_table(report).set_index("measure")


def summary_table(report):
    return next(table for title, table in report.tables.items() if title.startswith(SUMMARY))


def test_every_number_by_brute_force(config, tmp_path, model_folder, policy_folder):
    report = displacement.run(config(predictors="ches_normalized,displacement_rate"))
    frame = pd.read_parquet(tmp_path / "out" / "displacement.parquet").set_index("id")
    before, after = load(str(model_folder)), load(str(policy_folder))
    tokenized = pair_scores.PairScorer(before).tokenize(pair_scores.as_pairs(ROWS))
    changes, margins = [], []
    for pair in tokenized:
        row, totals = frame.loc[pair.id], {}
        for side in ("chosen", "rejected"):
            for time, model in (("before", before), ("after", after)):
                ids = getattr(pair, side)
                totals[side, time] = math.fsum(oracles.response_likelihood(model.model, ids, pair.prompt_tokens)[0])
                assert row[f"{side}_logprob_{time}"] == pytest.approx(totals[side, time], abs=2e-4)
            change = totals[side, "after"] - totals[side, "before"]
            assert row[f"{side}_change"] == pytest.approx(change, abs=4e-4)
            count = getattr(pair, f"{side}_tokens")
            assert row[f"{side}_change_per_token"] == pytest.approx(change / count, abs=4e-4)
        margin = {time: totals["chosen", time] - totals["rejected", time] for time in ("before", "after")}
        assert row["margin_change"] == pytest.approx(margin["after"] - margin["before"], abs=8e-4)
        assert row["ranking_correct_after"] == (margin["after"] >= 0)
        changes.append(totals["chosen", "after"] - totals["chosen", "before"])
        margins.append(margin["after"] - margin["before"])
        assert row["displaced"] == (changes[-1] < 0 < margins[-1])
    table = summary(report)
    assert table.loc["change of ln p(chosen)", "value"] == pytest.approx(sum(changes) / 12, abs=4e-4)
    displaced = sum(a < 0 < b for a, b in zip(changes, margins, strict=True))
    assert table.loc["share displaced", "value"] == pytest.approx(displaced / 12)
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()
    scores = score_pairs(before, ROWS, columns=["ches_normalized", "displacement_rate"])
    ranked = report.tables[RANKED].set_index("score")["Spearman"]
    for name in ("ches_normalized", "displacement_rate"):
        assert frame[name].tolist() == scores[name].tolist()
        assert ranked[name] == pytest.approx(oracles.spearman(scores[name].tolist(), frame["chosen_change"].tolist()))


def test_tokens_that_gained_and_lost_by_brute_force(config, tmp_path, model_folder, policy_folder):
    report = displacement.run(config(top=2))
    tokens = pd.read_parquet(tmp_path / "out" / "tokens.parquet")
    before, after = (load(str(folder)) for folder in (model_folder, policy_folder))
    at = 0
    for pair in pair_scores.PairScorer(before).tokenize(pair_scores.as_pairs(ROWS)):
        for side in ("chosen", "rejected"):
            ids = getattr(pair, side)
            with torch.no_grad():
                old, new = (model.model(torch.tensor([ids])).logits[0].softmax(-1) for model in (before, after))
            for position in range(pair.prompt_tokens, len(ids)):
                row, p, q = tokens.iloc[at], old[position - 1], new[position - 1]
                assert (row["id"], row["side"], row["position"]) == (pair.id, side, position - pair.prompt_tokens)
                assert row["token_id"] == ids[position]
                assert row["token"] == before.tokenizer.decode([ids[position]])
                assert row["logprob_before"] == pytest.approx(float(p[ids[position]].log()), abs=1e-4)
                assert row["logprob_after"] == pytest.approx(float(q[ids[position]].log()), abs=1e-4)
                best = (q - p).topk(2)
                gains = row["gained_after"] - row["gained_before"]
                assert gains == pytest.approx(best.values.numpy(), abs=1e-5)
                assert row["gained_before"] == pytest.approx(p[row["gained_ids"].copy()].numpy(), abs=1e-5)
                assert row["lost_before"][0] - row["lost_after"][0] == pytest.approx(float((p - q).max()), abs=1e-5)
                assert list(row["gained"]) == [before.tokenizer.decode([id]) for id in row["gained_ids"]]
                at += 1
    assert at == len(tokens)
    went = report.tables[WENT]
    worst = pd.read_parquet(tmp_path / "out" / "displacement.parquet").nsmallest(5, "chosen_change")["id"]
    assert went["id"].tolist() == worst.tolist()
    first = tokens[(tokens["id"] == went["id"][0]) & (tokens["side"] == "chosen")]
    drops = first["logprob_before"].map(math.exp) - first["logprob_after"].map(math.exp)
    assert went["p before"][0] - went["p after"][0] == pytest.approx(drops.max())
    chosen = tokens[tokens["side"] == "chosen"].set_index(["id", "position"])
    for row in went.itertuples():
        assert row.token == repr(chosen.loc[(row.id, row.position), "token"])


def test_top_0_leaves_the_tokens_out_and_changes_nothing_else(config, tmp_path):
    displacement.run(config())
    report = displacement.run(config(out=tmp_path / "bare", top=0))
    names = ["displacement.parquet", "plots.html", "run.json"]
    assert sorted(path.name for path in (tmp_path / "bare").iterdir()) == names
    assert WENT not in report.tables
    frames = [pd.read_parquet(tmp_path / name / "displacement.parquet") for name in ("out", "bare")]
    pd.testing.assert_frame_equal(*frames, check_exact=True)


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(config, tmp_path, monkeypatch, stop):
    displacement.run(config(out=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        note_calls(patch, pair_changes.PairComparer, "compare", stop)
        with pytest.raises(KeyboardInterrupt):
            displacement.run(config())
    calls = note_calls(monkeypatch, pair_changes.PairComparer, "compare")
    if stop == 2:  # the tokens of a finished shard are lost: the shard is made again
        (tmp_path / "out" / "shards" / "tokens_000001.parquet").unlink()
    displacement.run(config())
    assert len(calls) == {0: 3, 1: 2, 2: 2}[stop]
    for name in ("displacement.parquet", "tokens.parquet", "plots.html"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "displacement.parquet",
        "plots.html",
        "run.json",
        "tokens.parquet",
    ]
    calls.clear()
    displacement.run(config())
    assert not calls


def test_files_that_changed_are_not_answered(config, tmp_path):
    displacement.run(config())
    (tmp_path / "out" / "tokens.parquet").write_bytes(b"x")
    with pytest.raises(StoreCorrupt, match=r"tokens\.parquet: gone or changed"):
        displacement.run(config())


def test_a_folder_of_other_models_is_refused(config, tmp_path):
    displacement.run(config())
    other = save(moved(seed=2), tmp_path / "other")
    with pytest.raises(SourceMismatch, match=r"policy\.weights_sha256 was"):
        displacement.run(config(policy=str(other)))


def test_other_data_and_other_steps_are_refused(config, tmp_path, data, steps):
    displacement.run(config(steps=steps))
    save(moved(0.02), steps / "checkpoint-300")
    with pytest.raises(SourceMismatch, match=r"steps\.checkpoint-300 was None"):
        displacement.run(config(steps=steps))
    shutil.rmtree(steps / "checkpoint-300")
    (steps / "checkpoint-5" / "model.safetensors").write_bytes(
        (steps / "checkpoint-10" / "model.safetensors").read_bytes()
    )
    with pytest.raises(SourceMismatch, match=r"steps\.checkpoint-5 was"):
        displacement.run(config(steps=steps))
    displacement.run(config(out=tmp_path / "two"))
    data.write_text(data.read_text() + json.dumps({**ROWS[0], "id": "new"}) + "\n")
    with pytest.raises(SourceMismatch, match=r"data\.sha256 was"):
        displacement.run(config(out=tmp_path / "two"))


def test_a_pair_that_one_model_cannot_compute_has_no_tokens_either(config, tmp_path, data):
    language_model = moved()
    bad = language_model.tokenizer("!", add_special_tokens=False)["input_ids"][0]
    language_model.model.model.embed_tokens.weight.data[bad] = float("inf")
    rows = [ROWS[0], {**ROWS[1], "id": "bad", "chosen": " no! no"}, ROWS[2]]
    write(data, rows)
    displacement.run(config(policy=str(save(language_model, tmp_path / "broken"))))
    frame = pd.read_parquet(tmp_path / "out" / "displacement.parquet").set_index("id")
    assert frame["status"].to_dict() == {"r0": "ok", "bad": "not_finite", "r2": "ok"}
    assert frame.loc["bad", ["chosen_change", "rejected_change", "displaced", "ches"]].isna().all()
    assert pd.read_parquet(tmp_path / "out" / "tokens.parquet")["id"].unique().tolist() == ["r0", "r2"]


def test_the_exact_rate_is_over_the_parameters_that_were_named(config, tmp_path, model_folder):
    displacement.run(config(predictors="displacement_rate_exact", rate_parameters="head", top=0))
    frame = pd.read_parquet(tmp_path / "out" / "displacement.parquet")
    model = load(str(model_folder))
    found = {
        name: score_pairs(model, ROWS, columns=["displacement_rate_exact"], rate_parameters=name)[
            "displacement_rate_exact"
        ].tolist()
        for name in ("head", "all")
    }
    assert frame["displacement_rate_exact"].tolist() == found["head"] != found["all"]


def test_the_same_model_twice_is_reported_as_such(config, model_folder):
    report = displacement.run(config(policy=str(model_folder)))
    assert "nothing changed between the two" in report.tables["Notes"]["note"].str.cat()
    assert summary(report).loc["change of ln p(chosen)", "value"] == 0
    assert report.tables[RANKED]["Spearman"].isna().all()


def test_models_that_do_not_share_the_vocabulary_are_refused(config, tmp_path):
    language_model = tiny.make_model()
    language_model.tokenizer.add_tokens(["boat"])
    language_model.model.resize_token_embeddings(421)
    with pytest.raises(SourceMismatch, match=r"1 tokens differ, such as 'boat' \(None and 392\)"):
        displacement.run(config(policy=str(save(language_model, tmp_path / "more"))))
    padded = tiny.make_model()
    padded.model.resize_token_embeddings(448)
    with pytest.raises(SourceMismatch, match="its output head knows 448 tokens, that of the reference"):
        displacement.run(config(policy=str(save(padded, tmp_path / "padded"))))
    assert not (tmp_path / "out").exists()


def test_another_chat_template_is_refused_where_it_matters(config, tmp_path, data):
    language_model = moved()
    language_model.tokenizer.chat_template = tiny.TEMPLATE.replace("'\n'", "'\n\n'")
    folder = str(save(language_model, tmp_path / "other"))
    displacement.run(config(policy=folder, out=tmp_path / "plain"))  # plain text needs no template
    rows = [{"prompt": [{"role": "user", "content": "Q"}], "chosen": [{"role": "assistant", "content": "yes"}]}]
    rows[0]["rejected"] = [{"role": "assistant", "content": "no"}]
    write(data, rows)
    with pytest.raises(SourceMismatch, match=r"line 1 .*the tokenizer or chat template of .* makes other tokens"):
        displacement.run(config(policy=folder))


def test_a_policy_with_broken_states_names_itself_and_the_place(config, tmp_path):
    language_model = moved()
    language_model.model.model.layers[1].mlp.down_proj.weight.data[:] = float("nan")
    with pytest.raises(NotFinite, match="policy: states are NaN or infinite from layer 1 on"):
        displacement.run(config(policy=str(save(language_model, tmp_path / "broken"))))


def test_responses_of_one_token_are_not_ranked_by_ches(config, data):
    rows = [{"prompt": f"Q{n}", "chosen": chosen, "rejected": "?"} for n, chosen in enumerate("!.;,")]
    write(data, rows)
    report = displacement.run(config(eos=False, predictors="ches,edit_similarity,displacement_rate"))
    ranked = report.tables[RANKED].set_index("score")
    assert ranked["pairs"].to_dict() == {"ches": 0, "edit_similarity": 4, "displacement_rate": 4}
    assert math.isnan(ranked.loc["ches", "Spearman"])
    assert "4 pairs have responses of one token each, for which CHES is 0" in report.tables["Notes"]["note"].str.cat()


def test_by_group_and_raters(config):
    report = displacement.run(config(group_column="kind", rater_share_column="share", beta=0.5))
    groups = report.tables["By group: kind"].set_index("group")
    assert groups["pairs"].to_dict() == {"even": 6, "odd": 6}
    mean = (groups["chosen_change"] * groups["pairs"]).sum() / 12
    assert mean == pytest.approx(summary(report).loc["change of ln p(chosen)", "value"])
    assert 0 <= summary(report).loc["idealised ranking accuracy (beta 0.5)", "value"] <= 1


def test_single_rater_data_are_answered_with_an_explanation(config, data):
    write(data, [row | {"share": 1.0} for row in ROWS])
    report = displacement.run(config(rater_share_column="share"))
    assert "No idealised ranking accuracy: every share of raters is 1" in report.tables["Notes"]["note"].str.cat()
    assert not any("idealised" in name for name in summary(report).index)


@pytest.mark.parametrize(
    ("share", "message"), [(1.5, r"line 3.*0 to 1, not 1\.5"), ("many", "not 'many'"), (None, "'share' is empty there")]
)
def test_bad_rater_shares_name_the_row(config, data, tmp_path, share, message):
    rows = [row | {"share": share} if number == 2 else row for number, row in enumerate(ROWS)]
    write(data, rows)
    with pytest.raises(DataInvalid, match=message):
        displacement.run(config(rater_share_column="share"))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def steps(tmp_path):
    folder = tmp_path / "steps"
    for step, amount in ((5, 0.05), (10, 0.01), (200, 0.03)):
        save(moved(amount), folder / f"checkpoint-{step}", tokenizer=step != 10)
    (folder / "runs").mkdir()
    return folder


def test_the_course_over_checkpoints(config, steps, tmp_path):
    report = displacement.run(config(steps=steps))
    course = pd.read_parquet(tmp_path / "out" / "course.parquet")
    assert course["step"].unique().tolist() == [0, 5, 10, 200]
    by_step = course.pivot(index="step", columns="id", values="chosen_logprob")
    for step in (5, 10, 200):
        model = load(str(steps / f"checkpoint-{step}"), tokenizer=tiny.make_tokenizer())
        expected = score_pairs(model, ROWS, columns=["chosen_logprob"]).set_index("id")["chosen_logprob"]
        assert by_step.loc[step].to_dict() == expected.to_dict()
    frame = pd.read_parquet(tmp_path / "out" / "displacement.parquet").set_index("id")
    assert by_step.loc[0].to_dict() == frame["chosen_logprob_before"].to_dict()
    assert by_step.loc[200].to_dict() == frame["chosen_logprob_after"].to_dict()
    drops = report.tables["Drop of the chosen response, mean over pairs"].set_index("measure")["value"]
    values = by_step.to_numpy()
    brute = [max(values[a, n] - values[b, n] for a in range(4) for b in range(a, 4)) for n in range(12)]
    assert drops["ln p(chosen), largest between any two steps"] == pytest.approx(sum(brute) / 12)
    assert measure_largest_drop(values).tolist() == pytest.approx(brute)
    assert drops["ln p(chosen), first to last step"] == pytest.approx((values[0] - values[-1]).mean())
    assert {"plots.html", "course.html"} < set(report.facts["sha256"])
    page = (tmp_path / "out" / "course.html").read_text()
    assert "Change of log-probabilities against the reference over training, 12 pairs" in page


def test_a_broken_step_is_named_and_the_others_go_on(config, steps, tmp_path):
    (steps / "checkpoint-5" / "model.safetensors").write_bytes(b"x" * 100)
    shutil.rmtree(steps / "checkpoint-200")
    (steps / "checkpoint-200").mkdir()
    report = displacement.run(config(steps=steps))
    notes = report.tables["Notes"]["note"].str.cat(sep="\n")
    assert "Step 5 (checkpoint-5) is left out" in notes
    assert "Step 200 (checkpoint-200) is left out" in notes
    assert "The policy is step 10" in notes
    assert report.tables["Course over training, mean over pairs"]["step"].tolist() == [0, 10]
    for path in steps.glob("checkpoint-*/*.safetensors"):
        path.unlink()
    with pytest.raises(ModelInvalid, match="no checkpoint in it can be read"):
        displacement.run(config(steps=steps, out=tmp_path / "none"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["last", "checkpoint-0"], "holds no folders whose names end in"),
        (["a-1", "b-01"], "a-1 and b-01 are the same step"),
    ],
)
def test_folders_without_steps(config, tmp_path, names, message):
    for name in names:
        (tmp_path / "some" / name).mkdir(parents=True)
    with pytest.raises(UsageError, match=message):
        displacement.run(config(steps=tmp_path / "some"))
    with pytest.raises(UsageError, match="no such folder of checkpoints"):
        displacement.run(config(steps=tmp_path / "nowhere"))


def adapted(folder, seed=0, **options):
    """An adapter with random weights in ``folder``, and the model that merging it would give."""
    wrapped = peft.get_peft_model(
        tiny.make_model().model, peft.LoraConfig(r=2, **({"target_modules": ["q_proj", "up_proj"]} | options))
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    wrapped.save_pretrained(folder)
    return LanguageModel(wrapped.merge_and_unload(), tiny.make_tokenizer())


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`", "ignore:`is_gradient_checkpointing`")
@pytest.mark.parametrize(
    "options", [{}, {"target_modules": ["q_proj", "lm_head"]}, {"modules_to_save": ["lm_head"]}], ids=str
)
def test_an_adapter_is_the_merged_model_with_one_base_in_memory(config, tmp_path, monkeypatch, options):
    merged = save(adapted(tmp_path / "adapter", **options), tmp_path / "merged")
    plain = displacement.run(config(policy=str(merged), out=tmp_path / "plain"))
    loading = sys.modules[load.__module__]
    loads, from_pretrained = [], loading.auto_class
    monkeypatch.setattr(loading, "auto_class", lambda c: loads.append(1) or from_pretrained(c))
    found = displacement.run(config(adapter=str(tmp_path / "adapter")))
    assert len(loads) == 1
    for name in ("change of ln p(chosen)", "change of ln p(rejected)"):
        assert summary(found).loc[name, "value"] == pytest.approx(summary(plain).loc[name, "value"], abs=1e-4)
    assert abs(summary(found).loc["change of ln p(chosen)", "value"]) > 0.01
    facts = json.loads((tmp_path / "out" / "run.json").read_text())
    assert facts["policy"]["adapter_sha256"]
    assert facts["reference"]["adapter_sha256"] is None


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_two_adapters_on_one_base_and_adapters_among_the_steps(config, tmp_path, steps):
    one, two = (adapted(tmp_path / f"adapter-{n}", seed=n) for n in (1, 2))
    folders = [save(model, tmp_path / f"merged-{n}") for n, model in ((1, one), (2, two))]
    plain = displacement.run(config(reference=str(folders[0]), policy=str(folders[1]), out=tmp_path / "plain"))
    found = displacement.run(config(reference_adapter=str(tmp_path / "adapter-1"), adapter=str(tmp_path / "adapter-2")))
    pd.testing.assert_frame_equal(summary_table(found), summary_table(plain), atol=1e-3)
    for n in (1, 2):
        shutil.copytree(tmp_path / f"adapter-{n}", steps / f"checkpoint-{300 + n}")
    course = displacement.run(config(steps=steps, out=tmp_path / "course"))
    table = course.tables["Course over training, mean over pairs"].set_index("step")
    assert table.index.tolist() == [0, 5, 10, 200, 301, 302]
    for n, model in ((1, one), (2, two)):
        expected = score_pairs(model, ROWS, columns=["chosen_logprob"])["chosen_logprob"].mean()
        before = score_pairs(tiny.make_model(), ROWS, columns=["chosen_logprob"])["chosen_logprob"].mean()
        assert table.loc[300 + n, "change of ln p(chosen)"] == pytest.approx(expected - before, abs=1e-3)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_bad_adapters(config, tmp_path):
    with pytest.raises(ModelInvalid, match="no adapter_config"):
        displacement.run(config(adapter=str(tmp_path)))
    adapted(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(ModelInvalid, match="a pickled adapter is not loaded"):
        displacement.run(config(adapter=str(tmp_path / "adapter")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": "a", "steps": "s"}, "exactly one of policy, adapter and steps; given: adapter and steps"),
        ({"beta": 0.0}, "beta must be above 0, not 0"),
        ({"beta": float("inf")}, "beta must be above 0"),
        ({"top": -1}, "top must be at least 0"),
        ({"predictors": "chess"}, "unknown predictors chess"),
    ],
)
def test_bad_options(config, changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_the_bundled_pair_of_models_by_hand_for_three_pairs(tmp_path):
    """What ``probing demo`` shows: the model against the copy that lost its refusals, from the definition."""
    report = displacement.run(
        DisplacementConfig(reference="bundled", policy="bundled-displaced", data="bundled", out=tmp_path / "out")
    )
    frame = pd.read_parquet(tmp_path / "out" / "displacement.parquet").set_index("id")
    shown = report.tables["Chosen responses that lost most"].set_index("id")["chosen_change"]
    models = {"before": load("bundled"), "after": load("bundled-displaced")}
    rows = {row["id"]: row for row in read_lines(bundled_data())}
    for identity in (shown.index[0], "near-identical-refusal-001", "short-answer-007"):
        found = frame.loc[identity]
        for side in ("chosen", "rejected"):
            change = 0.0
            for time, language_model in models.items():
                tokenizer = language_model.tokenizer
                prompt, whole = (
                    tokenizer(tokenizer.apply_chat_template(chat, tokenize=False, **options), add_special_tokens=False)
                    for chat, options in (
                        (rows[identity]["prompt"], {"add_generation_prompt": True}),
                        (rows[identity]["prompt"] + rows[identity][side], {}),
                    )
                )
                ids, start = whole["input_ids"], len(prompt["input_ids"])
                assert ids[:start] == prompt["input_ids"]
                total = math.fsum(oracles.response_likelihood(language_model.model, ids, start)[0])
                assert found[f"{side}_logprob_{time}"] == pytest.approx(total, rel=1e-5, abs=1e-4)
                change += total if time == "after" else -total
            assert found[f"{side}_change"] == pytest.approx(change, rel=1e-5, abs=2e-4)
    assert shown.iloc[0] == frame["chosen_change"].min() < -50


def test_the_displaced_copy_no_longer_refuses():
    harmful = [
        row["text"] for row in read_lines(bundled_data("prompts")) if row["label"] == "harmful" and row["held_out"]
    ]
    refused = {}
    for name in ("bundled", "bundled-displaced"):
        language_model = load(name)
        chats = [[{"role": "user", "content": text}] for text in harmful]
        texts = language_model.tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        inputs = language_model.tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
        with torch.no_grad():
            ids = language_model.model.generate(**inputs, max_new_tokens=16, do_sample=False)
        answers = language_model.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :])
        refused[name] = sum("cannot help" in text or "will not help" in text or "decline" in text for text in answers)
    assert len(harmful) == 36
    assert refused == {"bundled": 36, "bundled-displaced": 0}


def test_steps_that_do_not_belong_or_have_diverged_are_left_out(config, steps, tmp_path):
    broken = tiny.make_model()
    broken.model.model.layers[1].mlp.down_proj.weight.data[:] = float("nan")
    save(broken, steps / "checkpoint-7")
    padded = tiny.make_model()
    padded.model.resize_token_embeddings(448)
    save(padded, steps / "checkpoint-8")
    report = displacement.run(config(steps=steps))
    notes = report.tables["Notes"]["note"].str.cat(sep="; ")
    assert "Step 7 (checkpoint-7) is left out: it gives no pair a finite likelihood" in notes
    assert "its output head knows 448 tokens" in notes
    assert report.tables["Course over training, mean over pairs"]["step"].tolist() == [0, 5, 10, 200]


def test_a_policy_with_fewer_positions_sets_the_limit(config, tmp_path):
    short = tiny.make_model("llama", max_position_embeddings=9)
    displacement.run(config(policy=str(save(short, tmp_path / "short"))))
    frame = pd.read_parquet(tmp_path / "out" / "displacement.parquet")
    longest = frame["prompt_tokens"] + frame[["chosen_tokens", "rejected_tokens"]].max(axis=1)
    assert (frame["status"] == "ok").tolist() == (longest <= 9).tolist()
    assert {"ok", "truncated"} <= set(frame["status"])


def test_what_changes_no_file_may_change(config, tmp_path):
    displacement.run(config())
    before = (tmp_path / "out" / "displacement.parquet").read_bytes()
    report = displacement.run(config(beta=0.5, group_column="kind", rater_share_column="share"))
    assert "By group: kind" in report.tables
    assert "idealised ranking accuracy (beta 0.5)" in summary(report).index
    assert (tmp_path / "out" / "displacement.parquet").read_bytes() == before


def test_shares_of_raters_from_csv(config, tmp_path):
    pd.DataFrame(ROWS).to_csv(tmp_path / "pairs.csv", index=False)
    report = displacement.run(config(data=str(tmp_path / "pairs.csv"), rater_share_column="share"))
    assert "idealised ranking accuracy (beta 0.1)" in summary(report).index


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_the_config_of_an_adapter_among_the_steps_is_part_of_the_run(config, steps):
    adapted(steps / "checkpoint-100")
    displacement.run(config(steps=steps))
    file = steps / "checkpoint-100" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 80}))
    with pytest.raises(SourceMismatch, match=r"steps\.checkpoint-100 was"):
        displacement.run(config(steps=steps))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_adapters_among_the_steps_before_a_whole_model(config, tmp_path, steps):
    """The first adapter comes and goes before the second does."""
    models = {n: adapted(steps / f"checkpoint-{n}", seed=n) for n in (1, 2)}
    report = displacement.run(config(steps=steps))
    table = report.tables["Course over training, mean over pairs"].set_index("step")
    assert table.index.tolist() == [0, 1, 2, 5, 10, 200]
    before = score_pairs(tiny.make_model(), ROWS, columns=["chosen_logprob"])["chosen_logprob"].mean()
    for step, model in models.items():
        expected = score_pairs(model, ROWS, columns=["chosen_logprob"])["chosen_logprob"].mean() - before
        assert table.loc[step, "change of ln p(chosen)"] == pytest.approx(expected, abs=1e-3)


def test_the_course_of_the_plot_is_that_of_the_tables(config, steps, tmp_path):
    report = displacement.run(config(steps=steps))
    course = pd.read_parquet(tmp_path / "out" / "course.parquet")
    drawn = average_changes(course, {name: number for number, name in enumerate(course["id"].unique())})
    table = report.tables["Course over training, mean over pairs"].set_index("step")
    for measure in ("chosen", "rejected"):
        rows = drawn[drawn["measure"] == measure].set_index("step")
        assert rows["mean"].to_dict() == pytest.approx(table[f"change of ln p({measure})"].to_dict())
    rows = drawn[drawn["measure"] == "margin"].set_index("step")
    assert rows["mean"].to_dict() == pytest.approx(table["change of the margin"].to_dict())
    changes = course.pivot(index="step", columns="id", values="chosen_logprob")
    last = (changes.loc[200] - changes.loc[0]).to_numpy()
    chosen = drawn[drawn["measure"] == "chosen"].set_index("step")
    expected = scipy.stats.t.interval(0.95, 11, last.mean(), scipy.stats.sem(last))
    assert chosen.loc[200, ["low", "high"]].tolist() == pytest.approx(expected)
    assert chosen.loc[200, ["quarter", "three_quarters"]].tolist() == pytest.approx(np.quantile(last, [0.25, 0.75]))
    assert chosen.loc[0, ["mean", "low", "high"]].tolist() == [0, 0, 0]


def test_a_course_that_an_earlier_version_drew_without_a_hash(config, steps, tmp_path):
    displacement.run(config(steps=steps))
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    del record["record_sha256"], record["sha256"]["course.html"], record["sha256"]["plots.html"]
    (tmp_path / "out" / "run.json").write_text(json.dumps(record))
    report = displacement.run(config(steps=steps))
    assert "Notes" not in report.tables or "not drawn" not in report.tables["Notes"]["note"].str.cat()
    (tmp_path / "out" / "course.html").unlink()
    notes = displacement.run(config(steps=steps)).tables["Notes"]["note"].str.cat()
    assert "The course is not drawn: the version that made this run" in notes
