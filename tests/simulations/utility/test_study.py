"""The utility study: its jobs, its methods on real records, its tables."""

from dataclasses import asdict
from pathlib import Path

import pytest

from fedlatent.simulations.jobs import rows
from fedlatent.simulations.utility import __main__ as command
from fedlatent.simulations.utility import methods
from fedlatent.simulations.utility.methods import DATA_SETS, FEDERATED, LEVERS, PUBLIC
from fedlatent.simulations.utility.study import Job, jobs, run_study
from fedlatent.simulations.utility.tables import collect, main_table, mean_table, spread

HEART = DATA_SETS["heart_disease"]


def test_jobs_are_whole_seeds_in_order_and_all_different() -> None:
    """Each seed has every method at every epsilon before the next seed begins."""
    made = list(jobs(("main", "levers", "contamination"), tuple(DATA_SETS), 2))
    assert len(set(made)) == len(made)
    assert [job.seed for job in made] == sorted(job.seed for job in made)
    main = [job for job in made if job.table == "main" and job.data == "mitbih" and job.seed == 1]
    assert len(main) == len(PUBLIC) + 5 * (len(FEDERATED) + 2)
    assert {job.method for job in made if job.table == "levers"} == set(LEVERS)


@pytest.mark.parametrize("method", [*FEDERATED, *LEVERS])
def test_every_method_is_a_run_whose_noise_can_be_solved(method: str, data_dir: Path) -> None:
    """The settings of each method make a valid run that spends its epsilon and no more."""
    from fedlatent.shared.privacy.plan import PrivacyPlan

    present, _ = HEART.split(data_dir, 0)
    run = methods.run_of({**FEDERATED, **LEVERS}[method], present, 4.0, 0)
    spent = PrivacyPlan.from_config(run).epsilon()
    assert 3.9 < spent <= 4.0


def test_a_study_goes_on_where_it_stopped(tmp_path: Path, data_dir: Path) -> None:
    """Finished jobs are not run again, and equal jobs give equal answers."""
    wanted = [
        Job(table="main", data="heart_disease", method=method, epsilon=epsilon, seed=0)
        for method, epsilon in (("PCA", None), ("dp-mahalanobis", 4.0), ("fedavg", 4.0))
    ]
    told: list[str] = []

    def watch(number: int, total: int, job: Job) -> None:
        told.append(job.method)

    run_study(tmp_path, data_dir, wanted[:1], 1, watch)
    with (tmp_path / "results.jsonl").open("a") as stream:
        stream.write('{"job": {"table"')  # cut short by a kill
        stream.write("\n")
    run_study(tmp_path, data_dir, wanted, 1, watch)
    assert told == ["PCA", "dp-mahalanobis", "fedavg"]
    found = {row["job"]["method"]: row["answers"] for row in rows(tmp_path)}
    assert {one["question"] for one in found["PCA"]} == {"seen", "absent"}
    assert {one["question"] for one in found["fedavg"]} == set(methods.QUESTIONS)
    for answers in found.values():
        assert all(0.0 <= one["pooled"] <= 1.0 for one in answers)
    run_study(tmp_path / "again", data_dir, wanted[1:2], 1, watch)
    assert rows(tmp_path / "again")[0]["answers"] == found["dp-mahalanobis"]


def test_combined_score_answers_every_question(tmp_path: Path, data_dir: Path) -> None:
    """A run with a released density of parts rates them combined, beside the distance alone."""
    present, absent = HEART.split(data_dir, 0)
    short = {**FEDERATED["full+data"], "training": {"rounds": 1, "steps_per_round": 2}}
    found = list(methods.federated(short, present, absent, 4.0, 0, tmp_path))
    assert {score for score, _, _ in found} == {"score", "combined"}
    assert {question for score, question, _ in found if score == "combined"} == set(
        methods.QUESTIONS
    )


def test_tables_hold_mean_and_spread_over_seeds() -> None:
    """Numbers in the tables are those of the rows."""
    made = [
        {
            "job": asdict(Job(table="main", data="smd", method="fedavg", epsilon=4.0, seed=seed)),
            "answers": [{"score": "score", "question": "seen", "pooled": value}],
        }
        for seed, value in enumerate((0.7, 0.9))
    ]
    found = collect(made)
    assert spread([0.7, 0.9]) == "0.800 ± 0.141"
    table = main_table(found, "smd", "seen", (4.0, None))
    assert "| fedavg | 0.800 ± 0.141 | - |" in table
    assert "| fedavg | 0.800 | - |" in mean_table(found, ["smd"], ("seen", "absent"), 4.0)


def test_command_prints_tables(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tables of a folder come as Markdown."""
    job = Job(table="main", data="heart_disease", method="PCA", epsilon=None, seed=0)
    run_study(tmp_path, data_dir, [job], 1, lambda number, total, done: None)
    command.main(["tables", str(tmp_path)])
    assert "#### heart_disease: seen" in capsys.readouterr().out
