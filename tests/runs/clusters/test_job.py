import csv
import json
import random
import sys

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from harness import WORDS, damage_end, note_calls, notes, override, read_lines, write
from safetensors.torch import load_file
from sklearn.metrics import silhouette_score

from probing import Capture, aqi, capture, cluster_indices, load
from probing.errors import DataInvalid, LayerNotFound, SourceMismatch, StoreCorrupt, UsageError
from probing.metrics.clusters import ALL_INDICES, draws
from probing.metrics.drift import bures_wasserstein, centroid_shift, linear_cka, principal_angles
from probing.runs import capture as capturing
from probing.runs import clusters as job
from probing.runs.capture import within
from probing.runs.capture.config import CaptureConfig
from probing.runs.clusters import stages
from probing.runs.clusters.config import ClustersConfig
from probing.runs.common.layers import Pieces, read_layer_arrays
from probing.runs.common.tables import show_p
from probing.statistics.bootstrap import draw_bootstrap_weights
from probing.statistics.permutation import permute_labels
from probing.store.activations import ActivationStore

FILES = {"results.parquet", "rows.parquet", "summary.json", "plots.html"}
OF_SEVERAL = {"drift.parquet", "shifts.safetensors"}
QUICK = {"folds": 3, "permutations": 20, "resamples": 20, "tsne": False}
PLACES = [f"resid_post:{layer}" for layer in range(3)]
CHOSEN = "chosen inside folds"
AQI = {"aqi": "paper", "aqi_size_free": "size_free", "aqi_dbs_dunn": "dbs_dunn"}


def make_rows(count=48, seed=0, first=0):
    """Texts of random words that end as their label has it."""
    generator = random.Random(seed)
    ends = ("Sure, here is", "I cannot help with")
    return [
        {
            "id": f"r{n}",
            "text": f"{' '.join(generator.choices(WORDS, k=generator.randint(3, 7)))} {ends[n % 2]} {n}",
            "label": "ab"[n % 2],
            "category": f"c{n // 2 % 3}",
        }
        for n in range(first, first + count)
    ]


def changed(**columns):
    """The rows with some values replaced: functions of the number of a row and the row."""
    return [row | {name: value(n, row) for name, value in columns.items()} for n, row in enumerate(make_rows())]


def read(folder, name):
    return pd.read_parquet(folder / f"{name}.parquet")


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name in FILES | OF_SEVERAL}


def value(results, metric="silhouette", column="value", **where):
    kept = results[results["metric"] == metric]
    for name, wanted in {"set": "all", "category": "", **where}.items():
        kept = kept[kept[name] == wanted]
    (found,) = kept[column]
    return found


def states_of(model, rows, place):
    """[row width], captured by hand, in the order of the rows."""
    acts = capture(load(str(model)), rows, Capture((place,), "last", "text"))
    assert list(acts.ids) == [row["id"] for row in rows]
    return acts.values[:, 0].float()


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    """Another one, which takes no long texts."""
    return tiny.save_model(tmp_path_factory.mktemp("models") / "other", seed=1, max_position_embeddings=64)


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory):
    """Of more layers."""
    return tiny.save_model(tmp_path_factory.mktemp("models") / "deep", seed=2, num_hidden_layers=5)


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "texts.jsonl", make_rows())


@pytest.fixture
def config(model_folder, data, tmp_path):
    def make(**changes):
        values = {"data": str(data), "out": tmp_path / "out", **QUICK}
        if "store" not in changes:
            values |= {"model": str(model_folder), "places": "resid_post:0..1"}
        return ClustersConfig(**(values | changes))

    return make


def rows_of_everything():
    """A category that lacks a label, rows of none, a row too long for one model, and one without a label."""
    rows = make_rows()
    for n in range(8):
        rows[n]["category"] = None if n % 2 else "only a"
    return [*rows, {**rows[0], "id": "long", "text": "near " * 90}, {**rows[0], "id": "none", "label": None}]


@pytest.fixture(scope="module")
def done(tmp_path_factory, model_folder, other_model):
    """A run with everything in it: its folder, the options and the report."""
    folder = tmp_path_factory.mktemp("clusters")
    control = [row | {"label": "a"} for row in make_rows(16, seed=5, first=100)]
    config = ClustersConfig(
        model=[str(model_folder), str(other_model)],
        data=str(write(folder / "data.jsonl", rows_of_everything())),
        control=str(write(folder / "control.jsonl", control)),
        out=folder / "out",
        **QUICK,
    )
    return folder / "out", config, job.run(config)


@pytest.fixture(scope="module")
def seen(done, model_folder, other_model):
    """The states of the rows that were compared, by model and place, and those of the control."""
    control = read_lines(done[0].parent / "control.jsonl")
    return {
        (name, place): (states_of(model, make_rows(), place), states_of(model, control, place))
        for name, model in (("llama", model_folder), ("other", other_model))
        for place in PLACES
    }


LABELS = np.array(list("ab" * 24))


# What a run writes


def test_all_files_say_the_same(done):
    folder, _, report = done
    results, summary = read(folder, "results"), json.loads((folder / "summary.json").read_text())
    assert set(report.facts["sha256"]) == FILES | OF_SEVERAL
    assert [path.rpartition("/")[2] for path in report.facts["wrote"]] == [*report.facts["sha256"], "run.json"]
    assert {path.name for path in folder.iterdir()} == {
        *(FILES | OF_SEVERAL | {"run.json"}),
        *("states", "states-2", "control-states", "control-states-2"),
    }
    assert set(summary["tables"]) == set(report.tables)
    assert set(results["model"]) == set(summary["models"]) == {"llama", "other"}
    assert {model["how"] for model in summary["models"].values()} == {"packed (a sequence at a time), prompts shared"}
    assert set(results["metric"]) == {*ALL_INDICES, *AQI}
    keys = results[["model", "set", "category", "place", "metric"]]
    assert len(keys.drop_duplicates()) == len(results) == 2 * 10 * (3 * len(summary["sets"]) + 3)
    assert set(results["place"]) == {*PLACES, CHOSEN, "learned weights", "equal weights"}
    shown = report.tables[next(title for title in report.tables if title.startswith("By place, all rows"))]
    for row in shown.to_dict("records"):
        where = {"model": row["model"], "place": row["place"]}
        assert row["silhouette"] == pytest.approx(value(results, **where), rel=1e-12)
        low, high = (value(results, column=end, **where) for end in ("low", "high"))
        assert row["silhouette 95 %"] == f"{low:.4g} .. {high:.4g}"
        p = value(results, column="p_labels_corrected", **where)
        assert row["silhouette p over places"] == show_p(p, QUICK["permutations"])
        assert row["aqi"] == pytest.approx(value(results, "aqi", **where), rel=1e-12)
    assert shown.groupby("model")["chosen"].sum().eq(3).all()
    assert shown.groupby("model")["weight"].sum().to_numpy() == pytest.approx(1)
    page = (folder / "plots.html").read_text()
    assert "Silhouette, by place" in page
    assert "Silhouette by category and place, other" in page
    assert "principal components (a picture; no number is made from it)" in page
    assert "t-SNE" not in page


def test_rows_are_those_that_every_model_can_read(done):
    folder, _, report = done
    rows = read(folder, "rows").set_index("id")
    assert report.facts["rows_by_status"] == {"ok": 48, "no_label": 1, "too_long": 1}
    assert report.facts["labels"] == {"a": 24, "b": 24}
    assert rows.loc["long", "status"] == "too_long"
    assert "the limit is 64" in rows.loc["long", "detail"]
    assert rows.loc["none", "status"] == "no_label"
    ok = rows[rows["status"] == "ok"]
    assert ok.index.tolist() == [row["id"] for row in make_rows()]
    assert ok["fold"].value_counts().sort_index().tolist() == report.facts["folds"]
    assert ok["label"].tolist() == LABELS.tolist()
    results = read(folder, "results")
    for model in ("llama", "other"):
        place = report.facts["best"][model]
        expected = value(results, model=model, place=place)
        assert ok[f"silhouette {model}"].mean() == pytest.approx(expected, rel=1e-9)


def test_values_are_those_of_the_captured_states(done, seen):
    results = read(done[0], "results")
    for (model, place), (states, _) in seen.items():
        found = {name: float(one) for name, one in cluster_indices(states, LABELS, ALL_INDICES).items()}
        found |= {name: float(aqi(states, LABELS, form)) for name, form in AQI.items()}
        for metric, expected in found.items():
            assert value(results, metric, model=model, place=place) == pytest.approx(expected, rel=1e-9)


def size_free(points, codes):
    """The index by its definition, in numpy."""
    points = points.double().numpy()
    centres = [points[codes == code].mean(axis=0) for code in (0, 1)]
    within = sum(((points[codes == code] - centres[code]) ** 2).sum() for code in (0, 1))
    apart = ((centres[0] - centres[1]) ** 2).sum()
    between = sum((codes == code).sum() * ((centres[code] - points.mean(axis=0)) ** 2).sum() for code in (0, 1))
    n = len(points)
    return 0.5 * n * apart / within + 0.5 * (between / (within / (n - 2))) / (n - 2)


def test_intervals_and_p_values_recomputed_by_hand(done, seen):
    """The resamples are of all rows, the control's with them."""
    results = read(done[0], "results")
    units = np.arange(48 + 16)
    codes = (LABELS == "b").astype(int)
    drawn = [np.repeat(np.arange(48), counts) for counts in draw_bootstrap_weights(units, 20)[:, :48].astype(int)]
    relabelled = permute_labels(codes, units[:48], 20)
    place, ends = PLACES[1], (0.025, 0.975)
    draws, own, nulls = {}, {}, {}
    for model in ("llama", "other"):
        for at in PLACES:
            nulls[model, at] = np.array([size_free(seen[model, at][0], each) for each in relabelled])
        states = seen[model, place][0]
        own[model] = size_free(states, codes)
        draws[model] = np.array([size_free(states[index], codes[index]) for index in drawn])
        low, high = 2 * own[model] - np.quantile(draws[model], ends[::-1])
        where = {"metric": "aqi_size_free", "model": model, "place": place}
        assert value(results, **where) == pytest.approx(own[model], rel=1e-6)
        expected = max(2 * own[model] - draws[model].mean(), 0)
        assert value(results, column="corrected", **where) == pytest.approx(expected, rel=1e-4)
        assert value(results, column="low", **where) == pytest.approx(max(low, 0), rel=1e-4, abs=1e-9)
        assert value(results, column="high", **where) == pytest.approx(high, rel=1e-4)
        band = [value(results, column=f"labels_{name}", **where) for name in ("low", "median", "high")]
        assert band == pytest.approx(np.quantile(nulls[model, place], (0.025, 0.5, 0.975)).tolist(), rel=1e-4)
        p = (1 + (nulls[model, place] >= own[model]).sum()) / 21
        assert value(results, column="p_labels", **where) == pytest.approx(p)
        best = np.max([nulls[model, at] for at in PLACES], axis=0)
        assert value(results, column="p_labels_corrected", **where) == pytest.approx(
            (1 + (best >= own[model]).sum()) / 21
        )
    where = {"metric": "aqi_size_free", "model": "other", "place": place}
    turned = {model: np.maximum(2 * own[model] - each, 0) for model, each in draws.items()}
    changes = turned["other"] - turned["llama"]
    around = [np.quantile(changes, end, method=to) for end, to in zip(ends, ("lower", "higher"), strict=True)]
    corrected = [value(results, column="corrected", **where | {"model": model}) for model in ("llama", "other")]
    expected = [own["other"] - own["llama"], corrected[1] - corrected[0], *around]
    columns = [f"minus_first{name}" for name in ("", "_corrected", "_low", "_high")]
    for column, one in zip(columns, expected, strict=True):
        assert value(results, column=column, **where) == pytest.approx(one, rel=1e-3, abs=1e-6)
        assert np.isnan(value(results, column=column, **where | {"model": "llama"}))
    null = [silhouette_score(seen["other", place][0].double(), each) for each in relabelled]
    p = (1 + (np.array(null) >= value(results, model="other", place=place)).sum()) / 21
    assert value(results, column="p_labels", model="other", place=place) == pytest.approx(p)


def test_views_are_of_the_rows_that_they_name(done, seen):
    folder, _, report = done
    results, names = read(folder, "results"), np.array([row["category"] or "" for row in rows_of_everything()[:48]])
    states, others = seen["llama", PLACES[2]]
    kinds = {("all", ""): np.full(48, True), ("category", "only a"): (names == "only a") | (LABELS == "b")}
    kinds |= {("category", name): names == name for name in ("c0", "c1", "c2")}
    kinds |= {("without category", name): names != name for name in ("c0", "c1", "c2", "only a")}
    assert report.facts["sets"] == [f"{kind} {name}".strip() for kind, name in sorted(kinds)] + ["control"]
    for (kind, name), chosen in kinds.items():
        where = {"set": kind, "category": name, "model": "llama", "place": PLACES[2]}
        expected = silhouette_score(states[chosen].double(), LABELS[chosen])
        # Distances are made in float32, of which a silhouette near 0 is a small difference.
        assert value(results, **where) == pytest.approx(expected, rel=1e-6, abs=1e-6)
        assert value(results, column="rows", **where) == chosen.sum()
    # The control has the one label a: its rows take the place of the data's.
    beside = torch.cat((states[LABELS == "b"], others)).double()
    where = {"set": "control", "model": "llama", "place": PLACES[2]}
    assert value(results, **where) == pytest.approx(silhouette_score(beside, [1] * 24 + [0] * 16), rel=1e-6, abs=1e-6)
    assert value(results, column="rows", **where) == 40
    assert "beside the control of matched topics" in notes(report)


def test_drift_is_that_of_the_captured_states(done, seen):
    drift = read(done[0], "drift")
    assert set(drift["model"]) == {"other"}
    vectors = load_file(done[0] / "shifts.safetensors")
    for place in PLACES:
        before, after = seen["llama", place][0], seen["other", place][0]
        own = drift[drift["place"] == place].set_index(["subset", "name", "measure"])["value"]
        assert own["all", "", "cka"] == pytest.approx(linear_cka(before, after))
        assert own["all", "", "cka_debiased"] == pytest.approx(linear_cka(before, after, debiased=True))
        angles = [own["component", str(number + 1), "angle"] for number in range(8)]
        assert angles == pytest.approx(principal_angles(before, after, 8).tolist())
        for label in "ab":
            chosen = torch.tensor([one == label for one in LABELS])
            shift = centroid_shift(before[chosen], after[chosen])
            assert own["label", label, "shift"] == pytest.approx(shift.norm)
            assert own["label", label, "shift_relative"] == pytest.approx(shift.relative)
            assert own["label", label, "shift_noise"] == pytest.approx(shift.noise)
            assert vectors[f"other/{place}/label {label}"].numpy() == pytest.approx(shift.vector.numpy())
            found = bures_wasserstein(before[chosen], after[chosen])
            assert own["label", label, "bures_wasserstein"] == pytest.approx(found.distance)
            assert own["label", label, "geometry_conflict"] == pytest.approx(found.conflict)
        assert own["category", "c1", "shift"] > 0
        assert f"other/{place}/category only a" in vectors


def test_held_out_values_are_means_over_folds(done, seen):
    folder, _, report = done
    results, rows = read(folder, "results"), read(folder, "rows")
    folds = rows["fold"].dropna().astype(int).to_numpy()
    for model in ("llama", "other"):
        if len(report.facts["chosen"][model]) == 1:  # then it is known which fold chose what
            (place,) = report.facts["chosen"][model]
            parts = [
                silhouette_score(seen[model, place][0][folds == fold].double(), LABELS[folds == fold])
                for fold in range(3)
            ]
            where = {"set": "held out", "place": CHOSEN, "model": model}
            assert value(results, **where) == pytest.approx(np.mean(parts), rel=1e-6)
            assert np.isnan(value(results, column="p_labels_corrected", **where))
    assert any(len(chosen) == 1 for chosen in report.facts["chosen"].values())


# Held-out rows


def test_what_is_chosen_for_a_fold_does_not_depend_on_its_rows(config, tmp_path, monkeypatch):
    """The rows of the first fold get other states, in which the last place parts the labels best."""
    monkeypatch.setattr(stages, "clear", lambda _: None)
    job.run(config(places="resid_post:all"))
    folds = read(tmp_path / "out", "rows")["fold"].to_numpy()
    plain = ActivationStore.read

    def replaced(store, place, *rest):
        states = plain(store, place, *rest).clone()
        apart = 1000.0 if str(place) == PLACES[-1] else 0.0
        noise = torch.randn(states.shape, generator=torch.Generator().manual_seed(3)).to(states)
        noise[:, 0] += torch.from_numpy(LABELS == "b").to(states) * apart
        return torch.where(torch.from_numpy(folds == 0)[:, None], noise, states)

    monkeypatch.setattr(ActivationStore, "read", replaced)
    job.run(config(places="resid_post:all", out=tmp_path / "turned"))
    before, after = (read_layer_arrays(tmp_path / name / "shards", 3) for name in ("out", "turned"))
    assert after["chosen"][0] == before["chosen"][0] != 2
    assert after["chosen"][1:].tolist() == [2, 2]
    assert after["layer_weights"][0].tolist() == before["layer_weights"][0].tolist()
    assert (after["layer_weights"][1:] != before["layer_weights"][1:]).any(axis=1).all()


@pytest.mark.parametrize(
    ("count", "folds", "why"),
    [
        (48, 20, "a fold has 1 rows with the label 'a' and needs 3; take fewer --folds"),
        (4, 5, "4 rows make 4 groups that share no text; 5 folds need as many"),
    ],
)
def test_too_few_rows_for_folds(config, data, tmp_path, count, folds, why):
    write(data, make_rows(count))
    report = job.run(config(folds=folds))
    assert f"No layer was chosen on held-out rows: {why}" in notes(report)
    assert not any(title.startswith("Held out") for title in report.tables)
    assert "held out" not in set(read(tmp_path / "out", "results")["set"])
    assert read(tmp_path / "out", "rows")["fold"].isna().all()
    best = max(("resid_post:0", "resid_post:1"), key=lambda at: value(read(tmp_path / "out", "results"), place=at))
    assert report.facts["best"] == {"llama": best}


def test_rows_of_equal_text_and_of_a_column_stay_together(config, data, tmp_path):
    rows = changed(text=lambda n, row: row["text"] if n > 11 else f"near {n // 4}", topic=lambda n, row: n % 13)
    report = job.run(config(data=str(write(data, rows)), split_by="topic"))
    found = read(tmp_path / "out", "rows")
    assert found.groupby([row["text"] for row in rows])["fold"].nunique().eq(1).all()
    assert found.groupby([row["topic"] for row in rows])["fold"].nunique().eq(1).all()
    assert report.facts["groups"] < 13
    rows = [row | {"topic": n % 11} for n, row in enumerate(rows)]
    with pytest.raises(SourceMismatch, match="prompts"):
        job.run(config(data=str(write(data, rows)), split_by="topic"))
    data.unlink()
    with pytest.raises(DataInvalid, match="row 'r0' has no category to split by"):
        job.run(config(data=str(write(data, changed(category=lambda n, row: None if n < 3 else "c"))),
                       split_by="category", out=tmp_path / "other"))  # fmt: skip
    assert not (tmp_path / "other").exists()


# Places that say nothing


def same_ends():
    return changed(text=lambda n, row: row["text"] + " boat.")


def test_a_place_with_the_same_states_is_left_out(config, data, tmp_path):
    write(data, same_ends())
    report = job.run(config(places="resid_pre:0,resid_post:0"))
    assert "llama: left out, since the states of each label's rows are the same: resid_pre:0." in notes(report)
    assert report.facts["skipped_places"] == {"llama": ["resid_pre:0"]}
    assert "resid_pre:0" not in set(read(tmp_path / "out", "results")["place"])
    assert report.facts["layer_weights"]["llama"]["resid_pre:0"] == 0
    assert report.facts["chosen"] == {"llama": {"resid_post:0": 3}}


@pytest.mark.parametrize("folds", [3, 40])
def test_no_place_that_says_anything(config, data, tmp_path, folds):
    write(data, same_ends())
    with pytest.raises(DataInvalid, match=r"llama: the states of every label are the same at all places; read another"):
        job.run(config(places="resid_pre:0", folds=folds))
    assert not (tmp_path / "out" / "results.parquet").exists()


def test_resamples_without_any_spread_are_left_out(config, data, tmp_path):
    """Of two rows a label, a resample may hold copies of one row each, which are infinitely well apart."""
    few = changed(category=lambda n, row: "few" if n < 4 else "many")
    job.run(config(data=str(write(data, few)), resamples=200))
    results = read(tmp_path / "out", "results")
    found = results[(results["category"] == "few") & (results["set"] == "category")]
    assert found.loc[found["metric"].isin(["silhouette", "aqi", "aqi_size_free"]), "corrected"].map(np.isfinite).all()


# Labels, categories and controls


def test_labels_that_are_named(config, data, tmp_path):
    write(data, changed(label=lambda n, row: "abc"[n % 3]))
    report = job.run(config(labels="c, a"))
    assert report.facts["rows_by_status"] == {"ok": 32, "other_label": 16}
    assert report.facts["labels"] == {"a": 16, "c": 16}
    three = job.run(config(out=tmp_path / "three"))
    assert three.facts["labels"] == {"a": 16, "b": 16, "c": 16}
    assert "one degree of freedom" in notes(report)
    assert "one degree of freedom" not in notes(three)


def test_three_labels_are_three_clusters(config, data, tmp_path, model_folder):
    rows = changed(label=lambda n, row: "abc"[n % 3])
    job.run(config(data=str(write(data, rows))))
    results, states = read(tmp_path / "out", "results"), states_of(model_folder, rows, PLACES[1])
    labels = [row["label"] for row in rows]
    assert value(results, place=PLACES[1]) == pytest.approx(silhouette_score(states.double(), labels), rel=1e-6)
    expected = float(aqi(states, labels, "size_free"))
    assert value(results, "aqi_size_free", place=PLACES[1]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("labels", "names"), [((False, True), ["false", "true"]), ((1, 0), ["0", "1"]), (("да", "нет"), ["да", "нет"])]
)
def test_labels_of_any_type(config, tmp_path, labels, names):
    data = write(tmp_path / "x.jsonl.gz", changed(label=lambda n, row: labels[n % 2]))
    report = job.run(config(data=str(data), places="resid_post:1", labels=",".join(names)))
    assert report.facts["labels"] == dict.fromkeys(names, 24)
    assert notes(report).startswith(f"Compared are {names[0]} (24 rows), {names[1]} (24 rows).")


def test_empty_cells_are_no_category(config, tmp_path):
    path = tmp_path / "x.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "text", "label", "category"])
        writer.writeheader()
        writer.writerows(changed(category=lambda n, row: "" if n < 8 else n // 2 % 2))
        writer.writerow({"id": "x", "text": "near", "label": ""})
    report = job.run(config(data=str(path)))
    assert report.facts["rows_by_status"] == {"ok": 48, "no_label": 1}
    assert report.facts["sets"] == ["all", "category 0", "category 1", "without category 0", "without category 1"]
    assert read(tmp_path / "out", "rows")["category"].isna().sum() == 9
    missing = changed(category=lambda n, row: float("nan") if n < 8 else row["category"])
    report = job.run(config(data=str(write(tmp_path / "nan.jsonl", missing)), out=tmp_path / "nan"))
    assert "category nan" not in report.facts["sets"]


def test_categories_that_cannot_be_compared_are_named(config, data):
    rows = changed(category=lambda n, row: "big" if n % 2 or n > 30 else "rest" if n else "one")
    rows = [row | {"category": "b only"} if row["label"] == "b" else row for row in rows]
    report = job.run(config(data=str(write(data, rows))))
    assert report.facts["skipped_sets"] == {
        "1 of 4 categories": "fewer than 2 rows, or not among the 50 largest",
        "without category b only": "no row has the label 'b'",
    }
    assert "Left out, 1 of 4 categories: fewer than 2 rows, or not among the 50 largest." in notes(report)


def test_a_control_of_both_labels_and_of_others(config, tmp_path, model_folder):
    """Labels that the data do not have make no third cluster."""
    rows = [row | {"label": "abz"[n % 3]} for n, row in enumerate(make_rows(30, seed=5, first=100))]
    report = job.run(config(control=str(write(tmp_path / "control.jsonl", rows)), places=PLACES[1]))
    own = [row for row in rows if row["label"] != "z"]
    expected = silhouette_score(states_of(model_folder, own, PLACES[1]).double(), [row["label"] for row in own])
    results = read(tmp_path / "out", "results")
    assert value(results, set="control", place=PLACES[1]) == pytest.approx(expected, rel=1e-6)
    assert value(results, set="control", place=PLACES[1], column="rows") == 20
    assert report.facts["control"]["rows_by_status"] == {"ok": 20, "other_label": 10}


def test_ids_of_the_control_may_be_those_of_the_data(config, tmp_path, model_folder):
    rows = [row | {"id": f"r{n}", "label": "b"} for n, row in enumerate(make_rows(10, seed=5, first=100))]
    job.run(config(control=str(write(tmp_path / "control.jsonl", rows)), places=PLACES[0]))
    a = [row for row in make_rows() if row["label"] == "a"]
    states = torch.cat([states_of(model_folder, some, PLACES[0]) for some in (a, rows)])
    expected = silhouette_score(states.double(), [0] * 24 + [1] * 10)
    found = value(read(tmp_path / "out", "results"), set="control", place=PLACES[0])
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("options", [{"metric": "cosine"}, {"scaling": "whiten"}, {"scaling": "standardize"}])
def test_other_distances(config, tmp_path, model_folder, options):
    job.run(config(places=PLACES[1], **options))
    results, states = read(tmp_path / "out", "results"), states_of(model_folder, make_rows(), PLACES[1])
    for name, expected in cluster_indices(states, LABELS, **options).items():
        assert value(results, name, place=PLACES[1]) == pytest.approx(float(expected), rel=1e-6)


def test_the_weight_of_the_first_term(config, tmp_path):
    job.run(config(weight=1.0, places=PLACES[1]))
    results = read(tmp_path / "out", "results")
    first = value(results, "xie_beni", place=PLACES[1])
    assert value(results, "aqi", place=PLACES[1]) == pytest.approx(1 / first)


# Several models and stores


def test_models_of_different_depth(config, model_folder, deep_model, tmp_path):
    report = job.run(config(model=[str(model_folder), str(deep_model)], places="resid_post:all"))
    results, drift = read(tmp_path / "out", "results"), read(tmp_path / "out", "drift")
    assert set(results[results["model"] == "deep"]["place"]) >= {f"resid_post:{layer}" for layer in range(5)}
    assert drift["place"].unique().tolist() == PLACES
    compared = results[(results["set"] == "all") & results["minus_first"].notna()]
    assert set(compared["place"]) == set(PLACES)
    assert report.tables["Differences of corrected values, from llama, all rows, by place"]["place"].tolist() == PLACES


def test_models_that_share_no_place(config, model_folder, deep_model, tmp_path):
    report = job.run(config(model=[str(model_folder), str(deep_model)], places="resid_post:-1"))
    assert set(report.facts["sha256"]) == FILES
    assert read(tmp_path / "out", "results")["place"].nunique() == 5


def test_a_place_that_one_of_the_models_lacks(config, model_folder, deep_model, tmp_path):
    both = [str(deep_model), str(model_folder)]
    with pytest.raises(LayerNotFound, match=r"/llama has 3 layers, 0 to 2 .*, and no resid_post:4"):
        job.run(config(model=both, places="resid_post:4"))
    assert not (tmp_path / "out").exists()


def test_models_are_named_by_as_much_as_it_takes(config, model_folder, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "llama").symlink_to(model_folder)
    first = f"{model_folder.parent.name}/llama"
    report = job.run(config(model=[str(model_folder), str(tmp_path / "b" / "llama")], places=PLACES[0]))
    assert list(report.facts["models"]) == [first, "b/llama"]
    change = report.tables[f"Differences of corrected values, from {first}, all rows, by place"]
    assert change["silhouette"].tolist() == [0]


def stored(model, data, out, **changes):
    options = {"model": str(model), "data": str(data), "out": out, "places": "resid_post:0..1"}
    capturing.run(CaptureConfig(**(options | changes)))
    return str(out)


def test_stores_give_the_same_as_models(config, data, model_folder, other_model, tmp_path):
    control = write(tmp_path / "control.jsonl", make_rows(12, seed=5, first=100))
    models = {"llama": model_folder, "other": other_model}
    job.run(config(model=list(map(str, models.values())), control=str(control), places=PLACES[1]))
    stores = [stored(model, data, tmp_path / "s" / name, places=PLACES[1]) for name, model in models.items()]
    others = [stored(model, control, tmp_path / "c" / name, places=PLACES[1]) for name, model in models.items()]
    options = {"store": stores, "control": str(control), "control_store": others}
    report = job.run(config(**options, out=tmp_path / "again"))
    for name in ("results.parquet", "rows.parquet", "drift.parquet", "shifts.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert not list((tmp_path / "again").glob("*states*"))
    assert report.facts["control"]["rows_by_status"] == {"ok": 12}
    with pytest.raises(SourceMismatch, match=r"c/llama was captured from another model than .*s/other"):
        job.run(config(**options | {"store": stores[::-1]}, out=tmp_path / "turned"))
    mean = stored(model_folder, control, tmp_path / "mean", places=PLACES[1], pooling="mean")
    with pytest.raises(SourceMismatch, match=r"mean: request .*'mean'"):
        job.run(config(**options | {"control_store": [mean, others[1]]}, out=tmp_path / "turned"))
    assert not (tmp_path / "turned").exists()


def test_stores_of_something_else(config, data, model_folder, tmp_path):
    store = stored(model_folder, data, tmp_path / "s")
    turned = write(tmp_path / "turned.jsonl", changed(label=lambda n, row: "ba"[n % 2]))
    with pytest.raises(SourceMismatch, match=r"row 'r0' of .*turned.jsonl is not in it, .*48 of 48"):
        job.run(config(store=store, data=str(turned)))
    tokens = stored(model_folder, data, tmp_path / "tokens", pooling="tokens")
    with pytest.raises(SourceMismatch, match="holds the states of every token"):
        job.run(config(store=tokens))
    mean = stored(model_folder, data, tmp_path / "mean", pooling="mean")
    with pytest.raises(SourceMismatch, match=r"mean: request .*'mean'"):
        job.run(config(store=[store, mean]))
    with pytest.raises(UsageError, match=r"resid_post:2 was not captured; there are resid_post:0, resid_post:1"):
        job.run(config(store=store, places="resid_post:2"))
    assert not (tmp_path / "out").exists()


def test_a_run_of_one_store_is_none_of_another(config, data, model_folder, tmp_path):
    """The rows and the model are the same, the states are not."""
    stores = [stored(model_folder, data, tmp_path / name, pooling=name) for name in ("last", "mean")]
    job.run(config(store=stores[0]))
    with pytest.raises(SourceMismatch, match=r"model 1\.states\.shards_sha256"):
        job.run(config(store=stores[1]))
    fewer = stored(model_folder, data, tmp_path / "fewer", places="resid_post:0")
    with pytest.raises(SourceMismatch, match=r"model 1\.states\.shards_sha256"):
        job.run(config(store=fewer))


def test_a_damaged_store_is_refused(config, data, model_folder, tmp_path):
    store = stored(model_folder, data, tmp_path / "s")
    path = tmp_path / "s" / "shards" / "000000.safetensors"
    damage_end(path)
    with pytest.raises(StoreCorrupt, match=r"000000\.safetensors"):
        job.run(config(store=store))
    assert not (tmp_path / "out" / "results.parquet").exists()


# A run again


def test_a_finished_run_is_not_made_again(done, monkeypatch):
    folder, config, report = done
    before = content(folder)
    monkeypatch.setattr(stages, "make_part", None)
    monkeypatch.setattr(within, "capture_into", None)
    again = job.run(config)
    assert {title: table.to_dict() for title, table in again.tables.items()}.keys() == report.tables.keys()
    assert content(folder) == before
    turned = ClustersConfig(**vars(config) | {"model": config.model[::-1]})
    with pytest.raises(SourceMismatch, match="model 1"):
        job.run(turned)


def test_other_options_or_rows_are_refused(config, data, tmp_path, other_model):
    job.run(config())
    before = content(tmp_path / "out")
    for changes in ({"metric": "cosine"}, {"scaling": "whiten"}, {"permutations": 21}, {"labels": "a,b"}, {"seed": 1}):
        with pytest.raises(SourceMismatch, match=rf"options\.{next(iter(changes))}"):
            job.run(config(**changes))
    with pytest.raises(SourceMismatch, match=r"model 1\.model"):
        job.run(config(model=str(other_model)))
    write(data, changed(category=lambda n, row: "c"))
    with pytest.raises(SourceMismatch, match="prompts"):
        job.run(config())
    assert content(tmp_path / "out") == before


def test_a_lost_file_is_named(config, tmp_path):
    job.run(config(places=PLACES[0]))
    (tmp_path / "out" / "rows.parquet").unlink()
    with pytest.raises(StoreCorrupt, match=r"rows\.parquet: gone or changed"):
        job.run(config(places=PLACES[0]))


@pytest.mark.parametrize("damage", ["", "shards/000001.safetensors", "states/shards/000000.safetensors"])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(config, tmp_path, monkeypatch, damage):
    job.run(config(out=tmp_path / "calm"))
    with monkeypatch.context() as patch:
        note_calls(patch, stages, "make_part", 2)
        with pytest.raises(KeyboardInterrupt):
            job.run(config())
    if damage:
        damage_end(tmp_path / "out" / damage)
    made = note_calls(monkeypatch, stages, "make_part")
    job.run(config())
    assert [part for _, part, *_ in made] == [(0, "", PLACES[1])] * damage.startswith("shards") + [(0, "held out", "")]
    assert content(tmp_path / "out") == content(tmp_path / "calm")
    assert not (tmp_path / "out" / "shards").exists()


@pytest.mark.parametrize("stop", [1, 4, 8, 22, 25])
def test_a_part_that_was_interrupted_goes_on_from_its_pieces(config, tmp_path, monkeypatch, stop):
    """A place has seven views in some passes over the distances each; there are two places, and three folds."""
    monkeypatch.setattr("probing.runs.common.layers.SAVED_SECONDS", 0.0)
    monkeypatch.setitem(draws.BUDGET, "cpu", 4000)
    calm = note_calls(monkeypatch, Pieces, "put")
    job.run(config(out=tmp_path / "calm"))
    put = [name for _, name, _ in calm]
    assert len(put) > 25
    assert {"view 0, draws 2 of 3", "view 0", "view 6", "fold 2"} <= set(put)
    with monkeypatch.context() as patch:
        note_calls(patch, Pieces, "put", stop)
        with pytest.raises(KeyboardInterrupt):
            job.run(config())
    assert (tmp_path / "out" / "shards").exists()
    again = note_calls(monkeypatch, Pieces, "put")
    job.run(config())
    # Only the piece that was being made is made once more.
    assert [name for _, name, _ in again] == put[stop:]
    assert content(tmp_path / "out") == content(tmp_path / "calm")
    assert not (tmp_path / "out" / "shards").exists()


def test_it_works_without_plotly(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    report = job.run(config(places=PLACES[0]))
    assert set(report.facts["sha256"]) == FILES
    assert "<svg" in (tmp_path / "out" / "plots.html").read_text()
    with pytest.raises(UsageError, match=r"--interactive needs plotly: pip install 'model-probing\[report\]'"):
        config(interactive=True)


# The command line


QUICK_OPTIONS = ("--folds", 3, "--permutations", 20, "--resamples", 20, "--no-tsne")


def test_repeated_options_are_a_list_in_yaml(model_folder, other_model, data, tmp_path, probing, monkeypatch):
    rest = ["--data", data, "--out", tmp_path / "out", "--places", PLACES[0], *QUICK_OPTIONS]
    status, out, _ = probing("clusters", "--model", model_folder, f"--model={other_model}", *rest, "--json")
    assert status == 0
    found = json.loads(out)
    assert list(found["models"]) == ["llama", "other"]
    assert found["tables"]["Differences of corrected values, from llama, all rows, by place"][0]["model"] == "other"
    assert "Drift, from llama, by place" in found["tables"]
    (tmp_path / "x.yaml").write_text(f"model: [{model_folder}, {other_model}]\n")
    monkeypatch.setattr(stages, "make_part", None)  # it is the same run, and done
    status, out, errors = probing("clusters", "--config", tmp_path / "x.yaml", *rest)
    assert status == 0
    assert "Drift, from llama, by place" in out
    assert f"wrote {tmp_path}/out/results.parquet" in errors


GOOD = make_rows()
BAD_DATA = {
    "no label": ([{"text": row["text"]} for row in GOOD], [], "no row has a label; name their column with"),
    "one label": (changed(label=lambda n, row: "a"), [], "there must be two labels to compare, and every row has 'a'"),
    "a label a row": (changed(label=lambda n, row: f"l{n}"), [], "only one row has the label 'l0'; a cluster needs 2"),
    "a rare label": (changed(label=lambda n, row: row["label"] if n else "c"), [], "only one row has the label 'c'"),
    "a list of labels": (changed(label=lambda n, row: ["a"]), [], "the label must be text, a number or true/false"),
    "label never seen": (GOOD, ["--labels", "a,z"], "no row has the label 'z'; there are a, b"),
    "label of no name": (GOOD, ["--labels", "a,b,"], "no row has the label ''; there are a, b"),
    "one label named": (GOOD, ["--labels", "a"], "--labels names 'a' only, of a, b"),
    "one label named twice": (GOOD, ["--labels", "a,a"], "--labels names 'a' only, of a, b"),
    "one id twice": (changed(id=lambda n, row: "x"), [], "id 'x' in column 'id' was already used at"),
    "no category": (changed(category=lambda n, row: "c" if n else None), ["--split-by", "category"],
                    "row 'r0' has no category to split by"),
    "no column": (GOOD, ["--split-by", "who"], "there is no column 'who' to split by; give 'text' or one of id"),
    "label column": (GOOD, ["--label-column", "kind"], "there is no column 'kind'"),
    "missing file": (GOOD, ["--data", "missing.jsonl"], "no such file"),
    "missing control": (GOOD, ["--control", "missing.jsonl"], "no such file"),
    "missing model": (GOOD, ["--model", "/nowhere/m"], "/nowhere/m: no such folder"),
    "weight": (GOOD, ["--weight", "2"], "weight must be in [0, 1], not 2"),
    "weight of nothing": (GOOD, ["--weight", "nan"], "--weight must be a number, not 'nan'"),
    "folds": (GOOD, ["--folds", "2"], "folds must be at least 3, not 2"),
    "permutations": (GOOD, ["--permutations", "0"], "permutations must be at least 1, not 0"),
    "resamples": (GOOD, ["--resamples", "0"], "resamples must be at least 1, not 0"),
    "components": (GOOD, ["--components", "0"], "components must be at least 1, not 0"),
    "seed": (GOOD, ["--seed", "-1"], "seed must be at least 0, not -1"),
    "metric": (GOOD, ["--metric", "manhattan"], "--metric must be one of euclidean, cosine, not 'manhattan'"),
    "scaling": (GOOD, ["--scaling", "some"], "--scaling must be one of none, standardize, whiten, not 'some'"),
    "span": (GOOD, ["--over", "span"], "give its folder as --store"),
    "place": (GOOD, ["--places", "resid_mid:1"], "'resid_mid' is no place in a model"),
    "layer": (GOOD, ["--places", "resid_post:7"], "has 3 layers, 0 to 2"),
    "model and store": (GOOD, ["--store", "x"], "give one of --model and --store"),
    "control store": (GOOD, ["--control-store", "x"], "--control-store belongs to --store and --control together"),
}  # fmt: skip
CONTROLS = {
    "no label": ([{"text": "near"}], "control.jsonl: no row has a label; name their column with"),
    "other labels": (changed(label=lambda n, row: "z"), "control.jsonl: no row has one of the labels a, b"),
    "nothing": ([], "control.jsonl: the file is empty"),
}


def check_refused(probing, out, message, *arguments):
    status, _, errors = probing("clusters", "--out", out, *override(QUICK_OPTIONS, arguments))
    assert status == 2
    assert message in " ".join(errors.split())
    assert "Traceback" not in errors
    assert not out.exists()


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_input_leaves_with_2_and_a_reason(model_folder, tmp_path, probing, case):
    rows, arguments, message = BAD_DATA[case]
    data = write(tmp_path / "bad.jsonl", rows)
    check_refused(probing, tmp_path / "out", message, "--data", data, "--model", model_folder, *arguments)


@pytest.mark.parametrize("case", CONTROLS)
def test_a_bad_control_leaves_with_2_and_a_reason(model_folder, data, tmp_path, probing, case):
    rows, message = CONTROLS[case]
    control = write(tmp_path / "control.jsonl", rows)
    check_refused(probing, tmp_path / "out", message, "--data", data, "--model", model_folder, "--control", control)


def test_one_model_is_not_compared_with_itself(model_folder, data, tmp_path, probing):
    rest = ["--data", data, "--model", model_folder, "--model"]
    for spelled in (model_folder, f"{model_folder}/", f"{model_folder.parent}/./{model_folder.name}"):
        check_refused(probing, tmp_path / "out", f"'{model_folder}' is given twice", *rest, spelled)


def test_neither_a_model_nor_a_store(data, tmp_path, probing):
    check_refused(probing, tmp_path / "out", "give one of --model and --store", "--data", data)
    store = ["--data", data, "--store", tmp_path / "none"]
    check_refused(probing, tmp_path / "out", "no such folder", *store)
    check_refused(probing, tmp_path / "out", "one for each store", *store, "--control", data)
    check_refused(probing, tmp_path / "out", "leave out --pooling", *store, "--pooling", "mean")


def test_texts_that_cannot_be_read(model_folder, data, tmp_path, probing):
    rest = ["--model", model_folder, *QUICK_OPTIONS, "--data"]
    status, _, errors = probing("clusters", *rest, data, "--out", tmp_path / "out", "--max-length", 2)
    assert (status, "no row could be read (48 too_long)" in errors) == (2, True)
    half = write(tmp_path / "half.jsonl", changed(text=lambda n, row: row["text"] if n % 2 else ""))
    status, _, errors = probing("clusters", *rest, half, "--out", tmp_path / "half")
    assert (status, "half.jsonl: 0 rows with the label 'a' could be read" in errors) == (2, True)
    assert not list(tmp_path.rglob("results.parquet"))


def test_an_output_that_is_something_else(model_folder, data, tmp_path, probing):
    rest = ["--model", model_folder, "--data", data, *QUICK_OPTIONS, "--out"]
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    stored(model_folder, data, tmp_path / "store")
    for name, message in (
        ("file", "is a file; give a folder as --out"),
        ("folder", "is not empty and holds no run of 'probing clusters' (mine.txt)"),
        ("store", "choose another --out"),
        ("file/out", "file is no folder; give a folder as --out"),
    ):
        before = sorted(map(str, tmp_path.rglob("*")))
        status, _, errors = probing("clusters", *rest, tmp_path / name)
        assert (status, message in errors) == (2, True), errors
        assert sorted(map(str, tmp_path.rglob("*"))) == before
