"""Run folders read back and judged, on synthetic runs whose truth is known."""

import pytest

from common.errors import UserError
from common.runs import load_run
from common.verdict import change_of, fell, verdict
from support.folders import GOOD, write_run

# --- reading ---


def test_series_leave_out_what_is_missing(tmp_path):
    run = load_run(write_run(tmp_path / "run", {"accuracy": [0.1, 0.2]}))
    assert run.series("eval/accuracy") == ([0, 10], [0.1, 0.2])
    assert run.series("loss/policy") == run.series("no/such") == ([], [])  # null; absent


@pytest.mark.parametrize("tail", [b'{"step": 21, "cov/accu', b"{", b'{"a": "\xc3'])
def test_a_line_half_written_is_passed_over(tmp_path, tail):
    folder = write_run(tmp_path / "run", {"accuracy": [0.1, 0.2, 0.3]})
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    assert [row["step"] for row in load_run(folder).rows] == list(range(21))


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        (
            "metrics.jsonl",
            b'{"step": 0}\n{"step": 1, "c\n{"step": 2}\n',
            "cannot be read .* line 2",
        ),
        ("metrics.jsonl", b'{"step": 0}\n\n{"step": 2}\n', "cannot be read .* line 2"),
        ("metrics.jsonl", b'{"step": 0', "no complete line yet"),
        ("metrics.jsonl", None, "metrics.jsonl: cannot be read"),
        ("args.json", b"{", "is no run folder"),
        ("args.json", None, "is no run folder"),
    ],
)
def test_a_broken_run_folder_is_refused(tmp_path, file, text, told):
    path = write_run(tmp_path / "run", GOOD) / file
    path.write_bytes(text) if text else path.unlink()
    with pytest.raises(UserError, match=told):
        load_run(tmp_path / "run")


def test_a_missing_run_suggests_the_nearest(tmp_path):
    write_run(tmp_path / "ctwa-s1", GOOD)
    with pytest.raises(UserError, match="did you mean .*/ctwa-s1\\?$"):
        load_run(tmp_path / "ctwa_s1")


# --- the verdict ---


@pytest.mark.parametrize(
    ("means", "greedily", "told"),
    [
        ([[0.1, 0.9]], [], "a improved."),
        ([[0.5]], [], "Evaluated only once, at step 0: nothing to compare yet."),
        ([[0.2, 0.8]] * 5, [], "All objectives improved."),
        ([[0.6, 0.62], [0.5, 0.5]], [], "No objective changed beyond noise."),
        ([[0.6, 0.62], [0.5, 0.8]], [], "b improved, a did not change beyond noise."),
        ([[0.6, 0.1], [0.5, 0.51]], [], "a was degraded (0.60 -> 0.10)."),
        (
            [[0.6, 0.1], [0.7, 0.2], [0.5, 0.9], [0.4, 0.8]],
            [],
            "a and b were degraded (0.60 -> 0.10, 0.70 -> 0.20) while c and d improved: "
            "cross-objective interference.",
        ),
        (
            [[0.6, 0.4, 0.9], [0.4, 0.8, 0.9], [0.6, 0.56, 0.9]],
            [],
            "All objectives improved; a dipped to 0.40 at step 10 before it recovered.",
        ),
        (
            [[0.6, 0.1, 0.2], [0.5, 0.2, 0.5], [0.5, 0.1, 0.5]],
            [],
            "a was degraded (0.60 -> 0.20); b dipped to 0.20 at step 10 and c dipped to 0.10 at "
            "step 10 before they recovered.",
        ),
        (
            [[0.5, 0.7], [0.9, 0.4]],
            [0.97, 0.92],
            "b was degraded (0.90 -> 0.40) while a rose in samples alone: cross-objective "
            "interference. Greedily a fell (0.97 -> 0.92).",
        ),
        (
            [[0.6, 0.6], [0.5, 0.8]],
            [0.97, 0.59],
            "b improved, a did not change beyond noise. Greedily a fell (0.97 -> 0.59).",
        ),
        ([[0.5, 0.7], [0.4, 0.9]], [0.97, 0.95], "All objectives improved."),
        (
            [[0.9, 0.5]],
            [0.3, 0.5],
            "a was degraded (0.90 -> 0.50). Greedily a rose (0.30 -> 0.50).",
        ),
    ],
)
def test_in_words(tmp_path, means, greedily, told):
    run = load_run(write_run(tmp_path / "run", dict(zip("abcde", means, strict=False))))
    for row, value in zip(run.rows[::10], greedily, strict=False):
        row |= {"eval/greedy/a": value, "eval/greedy/a_se": 0.01}
    assert verdict(run).splitlines()[-1] == told


def test_the_table(tmp_path):
    means = {"accuracy": [0.63, 0.05, 0.06], "clarity": [0.4, 0.8, 0.9]}
    head, *rows, _ = verdict(load_run(write_run(tmp_path / "run", means))).splitlines()
    assert [" ".join(row.split()) for row in rows] == [
        "accuracy 0.630 0.050 (10) 0.060 -0.570 ± 0.057 degraded 0.315 -> 0.030 ± 0.057",
        "clarity 0.400 0.400 (0) 0.900 +0.500 ± 0.057 improved 0.200 -> 0.450 ± 0.057",
        "length 30.0 28.0 (20) 28.0 -2.0 ± 0.8 shorter 30.0 -> 28.0 ± 0.8",
    ]
    for row, status in zip(rows, ("degraded", "improved", "shorter"), strict=True):
        assert row.index(status) == head.index("verdict")  # a column starts where its head does


@pytest.mark.parametrize(
    ("end", "status"),
    [(0.5566, "improved"), (0.5565, "unchanged"), (0.4435, "unchanged"), (0.4434, "degraded")],
)
def test_a_change_counts_beyond_two_standard_errors(tmp_path, end, status):
    run = load_run(write_run(tmp_path / "run", {"a": [0.5, end]}))  # 2 * sqrt(2) * 0.02 = 0.05657
    assert change_of(run, "a").status == status
    assert fell(run.rows[0], run.rows[-1], "a") == (status == "degraded")
