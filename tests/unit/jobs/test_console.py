import pytest

from jobs.console import code_note, print_plan
from schemas.runs import Decision, PlanDocument


def reused(stage: str, *code_changed: str) -> Decision:
    return Decision(
        stage=stage,
        kind="evaluate",
        action="reuse",
        reason="nothing that shapes it changed",
        code_changed=code_changed,
    )


def test_a_note_names_three_files_and_counts_the_rest() -> None:
    assert code_note(("a.py", "b.py", "c.py")) == "code changed: a.py, b.py, c.py; reused"
    assert code_note(tuple("abcde")) == "code changed: a, b, c and 2 more; reused"


def test_the_plan_tells_changed_code_once_for_each_stage_that_uses_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    document = PlanDocument(
        experiment="pets",
        workspace="/w",
        stages=(reused("accuracy[seed=1]", "pipeline/x.py"), reused("report")),
        disk_bytes_needed=0,
        disk_bytes_free=1,
    )
    print_plan(document)
    lines = [line for line in capsys.readouterr().out.splitlines() if "code changed" in line]
    assert lines == ["note: accuracy[seed=1]: code changed: pipeline/x.py; reused"]
