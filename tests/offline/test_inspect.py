"""What inspection says of shards, against tables made from the same records by other means."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import looked_at, tiny

from cfaug.causal.audit.confounding import confounding
from cfaug.data import ArrayDataset
from cfaug.errors import ShardError
from cfaug.offline import Plan, PlanRow, ShardReader, balance_groups, generate
from cfaug.offline.inspect import inspection
from cfaug.offline.inspect.inspection import inspect_shards
from cfaug.offline.progress import Progress


@pytest.fixture(scope="module", params=["png", pytest.param("webp", marks=pytest.mark.slow)])
def run(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources that lack values, null interventions, a continuous attribute, several shards and replicas."""
    out = tmp_path_factory.mktemp("run")
    data = tiny.dataset(60)
    table = data.table.copy()
    table.iloc[::7, table.columns.get_loc("colour")] = None
    table.iloc[3::11, table.columns.get_loc("thickness")] = np.nan
    data = ArrayDataset(data.images, table, data.schema)
    plan = balance_groups(
        table, data.schema, per_image=3, null_fraction=0.2, samples_per_shard=50, attributes=["colour", "ground"]
    )
    generate(tiny.model(), data, plan, out, workers=0, progress=False, image=request.param)
    return out


def tables(run: Path) -> tuple[pd.DataFrame, pd.DataFrame, list[dict]]:
    """The factual values, every source once, and the counterfactuals' values."""
    reader = ShardReader(run)
    records = [reader.record(i) for i in range(len(reader))]
    factual = pd.DataFrame({r["source_key"]: r["factual"] for r in records}).T
    factual["thickness"] = factual["thickness"].astype(float)
    counterfactual = pd.DataFrame(
        [r["attributes"] for r in records if r["do"]], index=[r["key"] for r in records if r["do"]]
    )
    return factual, counterfactual, records


def test_counts(run) -> None:
    found, (factual, counterfactual, records) = inspect_shards(run), tables(run)
    reader = ShardReader(run)
    assert (found.shards, found.samples) == (len(reader.manifest), len(records))
    assert found.shards > 2
    assert found.nulls == sum(not r["do"] for r in records) == len(records) - len(counterfactual)
    assert found.sources == len(factual) == 60
    assert found.bytes == sum(row.bytes for row in reader.manifest)
    assert found.image_bytes == pytest.approx(np.mean([row.image.size for row in reader.index]), abs=0.05)
    assert found.formats == {reader.index[0].image_field: len(records)}
    assert found.sizes == {"8x8x3": found.shards}
    assert found.target == "digit"
    assert found.interventions == {"(none)": found.nulls, "colour+ground": len(counterfactual)}
    assert sum(found.replicas.values()) == len(records)
    assert found.replicas["0"] == sum(r["replica"] == 0 for r in records)


def test_values_and_groups(run) -> None:
    found, (factual, counterfactual, _) = inspect_shards(run), tables(run)
    edges = np.quantile(factual["thickness"].dropna(), [0.25, 0.5, 0.75])
    for kind, table in (("factual", factual), ("counterfactual", counterfactual)):
        for name in ("digit", "colour", "ground"):
            row = found.attributes[name]
            assert row["kind"] == "categorical"
            assert row[kind] == table[name].value_counts().to_dict()
            assert row["missing"][kind] == table[name].isna().sum()
        row = found.attributes["thickness"]
        values = table["thickness"].dropna()
        assert row["kind"] == "continuous"
        assert row["missing"][kind] == table["thickness"].isna().sum() > 0
        assert [row[kind][k] for k in ("n", "min", "mean", "max")] == pytest.approx(
            [len(values), values.min(), values.mean(), values.max()]
        )
        assert row[kind]["quartiles"] == pytest.approx(np.quantile(values, [0.25, 0.5, 0.75]))
        levels = table["thickness"].map(lambda v: None if np.isnan(v) else f"q{np.searchsorted(edges, v) + 1}")
        for name, column in (("colour", table["colour"]), ("thickness", levels)):
            expected = pd.crosstab(table["digit"], column)
            cells = {(d, v): n for d, row in found.groups[name][kind].items() for v, n in row.items()}
            assert cells == {(d, v): expected.at[d, v] for d in expected.index for v in expected if expected.at[d, v]}
    assert "digit" not in found.groups


def test_confounding_is_that_of_the_tables(run) -> None:
    found, (factual, counterfactual, _) = inspect_shards(run), tables(run)
    for when, table in (("before", factual), ("after", counterfactual)):
        expected = confounding(tiny.schema().canonical(table), tiny.schema())
        assert {n: row[when]["nmi"] for n, row in found.confounding.items()} == pytest.approx(expected, abs=1e-6)
    before, after = (found.confounding["colour"][when] for when in ("before", "after"))
    assert before["nmi"] == 1.0
    assert before["p_value"] < 1e-6
    assert after["nmi"] < 0.02
    assert after["n"] == counterfactual["colour"].notna().sum()


def test_change_has_the_quantiles_of_the_records(run) -> None:
    found, (_, _, records) = inspect_shards(run), tables(run)
    for kind, null in (("counterfactual", False), ("null", True)):
        values = np.array([r["quality"]["change_l1"] for r in records if (not r["do"]) == null])
        row = found.change[kind]
        assert row["n"] == len(values)
        assert row["mean"] == pytest.approx(values.mean(), abs=1e-6)
        for q, name in ((0.05, "q05"), (0.5, "median"), (0.95, "q95")):
            assert row[name] == pytest.approx(np.quantile(values, q), abs=1e-6)


def test_json_and_text(run) -> None:
    found = inspect_shards(run)
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert content["groups"]["colour"]["counterfactual"]["0"]["red"] > 0
    assert content["rejected"] is None
    lines = str(found).splitlines()
    assert all(len(line) < 130 for line in lines)
    assert any(line.split()[:2] == ["samples", f"{found.samples}:"] for line in lines)
    row = next(line for line in lines if line.startswith("  colour  ") and "." in line)
    assert row.split() == ["colour", "1.000", *row.split()[2:]]
    assert "groups, digit x colour: of the sources -> of the counterfactuals" in lines
    assert any(line.startswith("  thickness") and line.endswith("(not intervened on)") for line in lines)


def test_of_a_url(run) -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    for path in (run / "shards").iterdir():
        if path.is_file() and not path.name.startswith("."):
            files.pipe_file(f"/looked/{run.name}/shards/{path.name}", path.read_bytes())
    found, local = inspect_shards(f"memory://looked/{run.name}").to_json(), inspect_shards(run / "shards").to_json()
    assert found.pop("place").startswith("memory://")
    local.pop("place")
    assert found == local


def test_logs_beside_the_shards_are_shown(tmp_path) -> None:
    rows = [PlanRow(f"k{i}", f"source {i}.png", tiny_do(i), i, i // 4, 0) for i in range(8)]
    generate(tiny.model(), tiny.dataset(), Plan(rows, samples_per_shard=4), tmp_path, workers=0, progress=False)
    for old in tmp_path.glob("stats*.jsonl"):
        old.unlink()
    with Progress(8, enabled=False, log=tmp_path / "stats-0.jsonl") as progress:
        progress.started()
        progress.shard("cf-train-000000.tar", 4, rejected=2, seconds=2.0, worker="h:1")
        progress.failed("cf-train-000001.tar", "why not")
    for place in (tmp_path, tmp_path / "shards"):
        found = inspect_shards(place)
        assert found.to_json()["rejected"] == 2
        assert found.to_json()["stats"]["images_per_second"] == {"h:1": 2.0}
        assert "  failed: cf-train-000001.tar: why not" in str(found).splitlines()


def tiny_do(i: int):
    from cfaug.causal.intervention import do

    return do(colour=tiny.COLOURS[i % 3])


def test_a_target_is_found_beside_one_that_agrees_at_first(tmp_path) -> None:
    factual = [{"twin": str(i % 2), "digit": str(i % 2), "colour": "red"} for i in range(6)]
    first = [looked_at.sample(i, f"s{i}", factual[i], {"colour": "blue"}) for i in range(6)]
    second = [looked_at.sample(10 + i, f"s{i}", factual[i], {"twin": str((i + 1) % 2)}) for i in range(6)]
    looked_at.write(tmp_path, [first, second])
    assert inspect_shards(tmp_path).target == "digit"


def test_without_a_target_the_values_are_still_counted(tmp_path) -> None:
    made = [looked_at.sample(i, f"s{i}", {"colour": "red"}, {"colour": "blue"}, target=None) for i in range(4)]
    looked_at.write(tmp_path, [made])
    found = inspect_shards(tmp_path)
    assert found.target is None
    assert found.attributes["colour"]["counterfactual"] == {"blue": 4}
    assert found.confounding["colour"] == {"before": None, "after": None}
    assert "no rows" in str(found)


def test_a_name_for_every_image_is_not_a_table(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(inspection, "MAX_VALUES", 5)
    made = [looked_at.sample(i, f"s{i}", {"colour": "red", "digit": "1", "name": f"n{i}"}, {}) for i in range(20)]
    looked_at.write(tmp_path, [made])
    found = inspect_shards(tmp_path)
    counts = found.attributes["name"]["factual"]
    assert (len(counts), counts["(other)"], sum(counts.values())) == (6, 15, 20)


def test_nothing_committed_and_damage_are_one_line(run, tmp_path) -> None:
    with pytest.raises(ShardError, match=r"^expected committed shards in .*, got none; generate first$"):
        inspect_shards(tmp_path)
    made = [looked_at.sample(i, f"s{i}", {"colour": "red", "digit": "1"}, {}) for i in range(3)]
    looked_at.write(tmp_path, [made])
    tar = tmp_path / "cf-train-000000.tar"
    content = tar.read_bytes()
    tar.chmod(0o644)
    tar.write_bytes(content.replace(b'"source_key":"s1"', b'"source_key":"s7"'))
    with pytest.raises(ShardError, match=r"cf-train-000000\.tar, sample 'k0000001'"):
        inspect_shards(tmp_path)
