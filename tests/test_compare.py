# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Comparisons: what is repeated and what is not, what becomes of failures and kills, and that choices are honest."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lightning_crmt.cli import ComparisonError, compare, read_comparison
from lightning_crmt.cli.comparison.cells import cells_of
from lightning_crmt.cli.comparison.folder import CellFolder
from lightning_crmt.cli.comparison.job import Job, do
from lightning_crmt.cli.comparison.runner import state_of
from lightning_crmt.report import NOT_RUN, find_runs, load_runs

QUICK = {
    "seed_everything": 0,
    "model": {
        "class_path": "CRMTModule",
        "init_args": {
            "num_classes": 10,
            "encoders": {
                "fou": {"class_path": "MLP", "init_args": {"in_features": 76, "out_features": 16}},
                "mor": {"class_path": "MLP", "init_args": {"in_features": 6, "out_features": 16}},
            },
        },
    },
    "data": {"class_path": "UCIMultiFeatures", "init_args": {"views": ["fou", "mor"], "batch_size": 200}},
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 2,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "callbacks": [{"class_path": "MissingModalities"}],
    },
}

OWN = """
import os
import signal
import time

from lightning.pytorch import Callback


class Mishap(Callback):
    def __init__(self, how: str):
        self.how = how

    def on_train_epoch_end(self, trainer, pl_module):
        if self.how == "raise":
            raise ArithmeticError("a mishap")
        if self.how == "sleep":
            time.sleep(0.5)
        if self.how == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        if self.how == "kill" and not os.path.exists("was_here"):
            open("was_here", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)


class Misleading(Callback):
    # Logs a number that is best on validation where it is worst on test.
    def __init__(self, value: float = 0.0):
        self.value = value

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("val/score", self.value)

    def on_test_epoch_end(self, trainer, pl_module):
        pl_module.log("test/score", -self.value)
        with open("tested.txt", "a") as file:
            file.write(f"{self.value}\\n")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("own_parts.py").write_text(OWN)
    Path("base.yaml").write_text(yaml.safe_dump(QUICK))
    yield tmp_path
    sys.modules.pop("own_parts", None)


def with_callback(name, **settings):
    return {"trainer": {"callbacks+": [{"class_path": f"own_parts.{name}", "init_args": settings}]}}


def written(**changes):
    """A comparison of two methods in a file, with changes."""
    content = {
        "out": "out",
        "seeds": 2,
        "seed_keys": ["data.init_args.seed"],
        "baseline": "" if "methods" in changes else "plain",
        "config": "base.yaml",
        "data": {"mfeat": []},
        "methods": {"plain": {"model": {"init_args": {"rho": 0.0}}}, "crmt": {"model": {"init_args": {"rho": 0.5}}}},
    }
    Path("comparison.yaml").write_text(yaml.safe_dump({**content, **changes}, sort_keys=False))
    return "comparison.yaml"


def numbers(runs):
    """All that must not depend on when, where and how fast."""
    return [replace(run, seconds=0.0, peak_memory=0) for run in runs]


def changed_at(folder="out"):
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("run.json")}


@pytest.mark.slow
def test_methods_data_and_seeds_by_the_path_of_fit_and_test():
    told = []
    runs = compare(written(), jobs=2, tell=told.append)
    assert [(run.method, run.data, run.seed) for run in runs] == [
        ("plain", "mfeat", 0), ("plain", "mfeat", 1), ("crmt", "mfeat", 0), ("crmt", "mfeat", 1)
    ]  # fmt: skip
    assert not any(run.error for run in runs)
    assert len(told) == 4
    assert sorted(load_runs("out"), key=str) == sorted(runs, key=str)
    for run in runs:
        assert 0.3 < run.numbers["test/accuracy/joint"] <= 1.0
        assert "test/accuracy_zeroed/fou" in run.numbers
        assert [epoch for epoch, _ in run.history["val/accuracy/joint"]] == [0, 1]
        assert run.samples == 400
        assert run.seconds > 0
        assert run.peak_memory > 50 * 2**20
        assert yaml.safe_load(run.config)["data"]["init_args"]["seed"] == run.seed
        assert run.versions["torch"]
        assert f"--only {run.method}/mfeat/{run.seed}" in run.command
    assert len({run.numbers["test/loss"] for run in runs}) == 4

    # It is what fit and test give, alone in a process of its own.
    script = (
        "import sys\nfrom lightning_crmt.cli import CRMTCLI\n"
        "cli = CRMTCLI(['fit', '--config=base.yaml', '--model.init_args.rho=0.5', '--trainer.logger=false',\n"
        "    '--seed_everything=1', '--data.init_args.seed=1'])\n"
        "print(cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)[0]['test/loss'])\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script]
    alone = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=environment)
    assert float(alone.stdout.split()[-1]) == runs[-1].numbers["test/loss"]

    # What is finished is not done again; one more seed is all that one more seed takes.
    before = changed_at()
    told.clear()
    more = compare(written(seeds=[1, 2, 0]), jobs=1, tell=told.append)
    assert len(told) == 2
    assert numbers(run for run in more if run.seed < 2) != []
    assert {run.numbers["test/loss"] for run in runs} < {run.numbers["test/loss"] for run in more}
    assert before.items() <= changed_at().items()


@pytest.mark.slow
def test_failures_stay_as_rows_and_kills_cost_their_run_alone():
    methods = {
        "plain": [],
        "raises": with_callback("Mishap", how="raise"),
        "refused": {"model": {"init_args": {"rho": -1.0}}},
        "killed": with_callback("Mishap", how="kill"),
    }
    told = []
    file = written(seeds=1, methods=methods)
    runs = {run.method: run for run in compare(file, jobs=1, tell=told.append)}
    assert list(runs) == list(methods)
    assert not runs["plain"].error
    assert runs["raises"].error == "ArithmeticError: a mishap"
    assert runs["refused"].error.startswith("`rho` must be at least 0, got -1.0")
    assert "SIGKILL" in runs["killed"].error
    assert not runs["killed"].numbers
    assert any("killed/mfeat/0 failed" in line for line in told)
    (log,) = [path for path in Path("out").rglob("log.txt") if "a mishap" in path.read_text()]
    assert "own_parts.py" in log.read_text()

    # The killed one is done again, the failed ones only when that is asked for.
    told.clear()
    again = {run.method: run for run in compare(file, jobs=1, tell=told.append)}
    assert len(told) == 1
    assert not again["killed"].error
    assert again["killed"].numbers == runs["plain"].numbers
    told.clear()
    compare(file, jobs=1, retry_failed=True, tell=told.append)
    assert sorted(line.partition("/")[0] for line in told) == ["raises", "refused"]


def test_a_run_that_was_told_to_end_is_done_again():
    file = written(seeds=1, methods={"ended": with_callback("Mishap", how="terminate")})
    (cell,) = cells_of(read_comparison(file))
    run = do(Job(cell, "run", Path("out")), lambda share: None)
    assert "SIGTERM" in run.error
    assert state_of(cell, CellFolder(Path("out")), candidate=False) == "killed"


@pytest.mark.slow
def test_the_choice_is_made_on_validation_and_the_test_part_is_looked_at_once():
    grid = {"trainer": {"callbacks+": [{"class_path": "own_parts.Misleading", "init_args": {"value": 0.0}}]}}
    settings = {value: with_callback("Misleading", value=value) for value in (0.1, 0.9, 0.5)}
    method = {"config": [], "grid": {"value": settings}, "select": {"key": "val/score", "mode": "max"}}
    told = []
    file = written(methods={"plain": grid, "tuned": method})
    runs = [run for run in compare(file, jobs=2, tell=told.append) if run.method == "tuned"]
    assert [run.seed for run in runs] == [0, 1]
    for run in runs:
        assert run.numbers["test/score"] == pytest.approx(-0.9)  # the worst on the test part
        assert run.choice == {"value": "0.9 of 0.1, 0.9, 0.5 by val/score"}
        assert not [name for name in run.numbers if name.startswith("val/")]
        assert run.history["val/score"]
    tested = [float(line) for line in Path("tested.txt").read_text().splitlines()]
    assert sorted(tested) == [0.0, 0.0, 0.9, 0.9]
    assert len(load_runs("out")) == 4
    before = changed_at()
    assert numbers(compare(file, jobs=2)) == numbers(compare(file, jobs=1))
    assert changed_at() == before

    # Another choice after a look at the test part is said to be one.
    method["select"]["mode"] = "min"
    other = [run for run in compare(written(methods={"plain": grid, "tuned": method}), jobs=1) if run.method == "tuned"]
    assert [run.numbers["test/score"] for run in other] == pytest.approx([-0.1, -0.1])
    assert other[0].choice == {
        "value": "0.1 of 0.1, 0.9, 0.5 by the least val/score, after a look at the test part with others"
    }
    assert len(load_runs("out")) == 4


@pytest.mark.slow
def test_what_is_of_other_code_or_settings_is_named_and_not_used():
    slow = {"plain": with_callback("Misleading", value=0.25)}
    file = written(seeds=1, methods=slow)
    (first,) = compare(file, jobs=1)
    told = []
    Path("own_parts.py").write_text(OWN.replace("-self.value", "-2 * self.value"))
    (second,) = compare(file, jobs=1, tell=told.append)
    assert told[0] == "plain/mfeat: 1 stale, not used: other code"
    assert second.numbers["test/score"] == 2 * first.numbers["test/score"] == -0.5
    assert load_runs("out") == [second]
    Path("base.yaml").write_text(yaml.safe_dump({**QUICK, "trainer": {**QUICK["trainer"], "max_epochs": 1}}))
    told.clear()
    compare(file, jobs=1, tell=told.append)
    assert told[0] == "plain/mfeat: 1 stale, not used: other settings"
    # What comes back is as finished as it was.
    Path("base.yaml").write_text(yaml.safe_dump(QUICK))
    told.clear()
    assert compare(file, jobs=1, tell=told.append) == [second]
    assert told == []


@pytest.mark.slow
def test_only_some():
    file = written()
    runs = compare(file, jobs=1, only=["cr*/mfeat/1"])
    assert [(run.method, run.seed) for run in runs] == [("crmt", 1)]
    rows = find_runs("out")
    assert [(run.method, run.seed, run.error) for run in rows] == [
        ("plain", 0, NOT_RUN), ("plain", 1, NOT_RUN), ("crmt", 0, NOT_RUN), ("crmt", 1, "")
    ]  # fmt: skip
    # With other options it is another comparison: what was there is named as left out.
    compare(file, jobs=1, only=["plain/mfeat/0"], words=["--trainer.max_epochs=1"])
    errors = {(run.method, run.seed): run.error for run in find_runs("out")}
    assert errors["plain", 0] == ""
    assert errors["plain", 1] == NOT_RUN
    assert "one of other settings, code, data or versions is left out" in errors["crmt", 1]
    with pytest.raises(ComparisonError, match="`only` must fit a METHOD/DATA/SEED, got 'other'"):
        compare(file, only=["other"])


def started(file, *words):
    command = [sys.executable, "-m", "lightning_crmt", "compare", file, "--jobs", "2", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def workers_of(pid):
    """Processes whose parent is the process."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(path.name))
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_killed_it_leaves_no_process_goes_on_and_comes_to_the_same():
    methods = {
        "slow": with_callback("Mishap", how="sleep"),
        "tuned": {"config": [], "grid": {"model.init_args.rho": [0.1, 1.0]}, "select": {"key": "val/accuracy/joint"}},
    }
    undisturbed = compare(written(out="undisturbed", seeds=2, methods=methods), jobs=2)
    file = written(out="out", seeds=2, methods=methods)
    process = started(file)
    first = next(line for line in process.stdout if "test/accuracy" in line)  # told as soon as the run is finished
    workers = workers_of(process.pid)
    assert process.poll() is None
    process.kill()
    process.communicate()
    assert len(workers) >= 2
    deadline = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, workers))
    finished = changed_at()
    assert len(finished) >= 1
    process = started(file)
    told, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert finished.items() <= changed_at().items()
    assert first not in told
    ended = load_runs("out")
    plain = [replace(run, command="") for run in numbers(ended)]
    assert plain == [replace(run, command="") for run in sorted(numbers(undisturbed), key=lambda r: (r.method, r.seed))]


@pytest.mark.slow
def test_two_at_once_in_a_folder_are_refused():
    file = written(seeds=1, methods={"slow": with_callback("Mishap", how="sleep")})
    process = started(file, "--trainer.max_epochs", "40")
    deadline = time.monotonic() + 60
    lock = Path("out/lock")
    while not (lock.exists() and lock.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    with pytest.raises(
        FileExistsError, match=f"no other comparison is at work in, got out, where process {process.pid}"
    ):
        compare(file, jobs=1)
    process.kill()
    process.communicate()
    assert len(compare(file, jobs=1)) == 1


WRONG = {
    "key": ({"methodss": 1}, "there is no key `methodss`; did you mean `methods`?"),
    "no methods": ({"methods": {}}, "`methods` must name at least one method, got none"),
    "list of methods": ({"methods": ["a"]}, "`methods` must be a mapping, NAME: files or settings, got"),
    "file": ({"methods": {"a": "nowhere.yaml"}}, "there is no file nowhere.yaml"),
    "settings": ({"methods": {"a": 3}}, "`methods.a` must be a file, settings, or a list of these, got 3"),
    "key of a method": ({"methods": {"a": {"config": [], "gird": {}}}}, "there is no key `gird`; did you mean `grid`?"),
    "name": ({"methods": {"a/b": []}}, "`methods` must have names without any of"),
    "baseline": ({"baseline": "crmtt"}, "`baseline` must be one of the methods, got 'crmtt'; did you mean `crmt`?"),
    "seeds": ({"seeds": "three"}, "`seeds` must be how many, or a list of integers from 0, got 'three'"),
    "equal seeds": ({"seeds": [1, 1]}, "`seeds` must differ, got [1, 1]"),
    "no choice": ({"methods": {"a": {"grid": {"x": [1]}}}, "baseline": ""}, "`grid` needs `select`"),
    "choice on the test part": (
        {"methods": {"a": {"grid": {"x": [1]}}}, "baseline": "", "select": {"key": "test/accuracy/joint"}},
        "`select.key` must be a number of the validation part, got 'test/accuracy/joint'",
    ),
    "mode": (
        {"methods": {"a": {"grid": {"x": [1]}}}, "baseline": "", "select": {"key": "val/loss", "mode": "low"}},
        "`select.mode` must be max or min, got 'low'",
    ),
    "pattern": ({"also": {"crmtt": []}}, "`also` must have patterns of METHOD or METHOD/DATA, got 'crmtt'"),
    "values": (
        {"methods": {"a": {"grid": {"x": 1}}}, "baseline": ""},
        "`grid.x` must be a list of values, or a mapping, NAME: settings, got 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name):
    changes, message = WRONG[name]
    with pytest.raises(ComparisonError) as caught:
        read_comparison(written(**changes))
    assert str(caught.value).startswith(message)


def test_a_config_that_cannot_be_followed_is_refused_before_anything_is_trained():
    file = written(methods={"plain": [], "a": {"model": {"init_args": {"rhoo": 1}}}}, seeds=[3])
    with pytest.raises(ComparisonError, match=r"(?s)'rhoo' is not accepted; did you mean `rho`\?.*in the method 'a'"):
        compare(file)
    assert not Path("out").exists()


def test_runs_of_several_devices_are_refused():
    with pytest.raises(ComparisonError, match=r"`trainer.devices` must be 1 or auto .* got 2"):
        compare(written(methods={"plain": {"trainer": {"devices": 2}}}))


def test_seeds_of_nothing_that_there_is():
    with pytest.raises(ComparisonError, match="'sede' is not accepted"):
        compare(written(seed_keys=["data.init_args.sede"]))


def test_what_a_method_is_stands_in_its_file():
    Path("jt.yaml").write_text("# SPDX-License-Identifier: MIT\n\n# JT, joint training, e.g. of\n# two. No more.\n")
    Path("saved.yaml").write_text("# lightning.pytorch==2.6.0\nseed_everything: 0\n")
    Path("silent.yaml").write_text("seed_everything: 0\n# The rest.\n")
    said = "JT, joint training, e.g. of two."
    settings, select = {"model": {"init_args": {"rho": 0.0}}}, {"key": "val/accuracy/joint"}
    methods = {
        "one": "jt.yaml", "grid": {"config": "jt.yaml", "grid": {"model.init_args.rho": [0.1]}, "select": select},
        "jt": ["saved.yaml", "jt.yaml", settings], "two": ["jt.yaml", settings], "saved": "saved.yaml",
        "silent": "silent.yaml", "none": settings,
    }  # fmt: skip
    comparison = read_comparison(written(methods=methods))
    told = dict.fromkeys(methods, "") | {"one": said, "grid": said, "jt": said}
    assert {name: method.about for name, method in comparison.methods.items()} == told
    CellFolder(Path()).keep_plan(comparison)
    rows = json.loads(Path("planned.json").read_text())
    assert {row["method"]: row["about"] for row in rows} == told


PAGE = Path(__file__).parent.parent / "docs" / "compare.md"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_comparisons_of_the_documentation_can_be_read():
    found = blocks("yaml")
    assert len(found) >= 4
    for place, block in enumerate(found):
        for name in re.findall(r"\w+\.yaml", block):
            Path(name).write_text("{}")
        Path("page.yaml").write_text(block)
        assert read_comparison("page.yaml").methods, place


@pytest.mark.slow
def test_the_python_of_the_documentation_runs():
    (code,) = blocks("python")
    Path("examples").symlink_to(PAGE.parent.parent / "examples")
    Path("page.py").write_text(code)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "page.py"], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    told = [line.split() for line in done.stdout.splitlines() if line.startswith(("plain ", "margins "))]
    assert [method for method, _ in told] == ["plain", "margins"]
    assert all(0 < float(share) <= 1 for _, share in told)
