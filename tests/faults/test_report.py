"""What the campaigns of faults share."""

import pytest

from faults.report import Case, Report, sample


def test_the_table_counts_by_kind_and_lists_what_did_not_hold(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = Report("rain")
    report.add(Case("drops"))
    report.add(Case("hail", "a hole in the roof", "python -m faults.rain --case 2"))
    report.add(Case("drops"))
    assert report.end() == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[4:7]] == [
        ["drops", "2", "2"],
        ["hail", "1", "0"],
        ["all", "3", "2"],
    ]
    assert "hail: a hole in the roof" in lines
    assert "    python -m faults.rain --case 2" in lines


def test_the_exit_code_says_whether_all_held() -> None:
    report = Report("rain")
    assert report.end() == 1  # nothing was tried
    report.add(Case("drops"))
    assert report.end() == 0


def test_a_sample_is_spread_evenly_and_the_same_each_time() -> None:
    cases = list(range(1000))
    some = sample(cases, 10, seed=3)
    assert [case // 100 for case in some] == list(range(10))
    assert some == sample(cases, 10, seed=3)
    assert some != sample(cases, 10, seed=4)
    assert sample(cases, None) == cases
    assert sample(cases, 2000) == cases
