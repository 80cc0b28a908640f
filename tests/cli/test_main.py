"""The `tilewright` command: subcommands, help, and messages that name commands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.command import ROOT, SMALL, step
from tilewright import program
from tilewright.cli import main
from tilewright.runs import environment


def run(monkeypatch, capsys, *arguments):
    """Runs the installed command in this process, and returns its stdout."""
    monkeypatch.setattr(sys, "argv", ["/usr/bin/tilewright", *arguments])
    main.main()
    return capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command_on_a_line(monkeypatch, capsys, arguments):
    out = run(monkeypatch, capsys, *arguments)
    scripts = {path.stem for path in Path(__file__).parents[2].glob("src/*.py")}
    assert scripts == set(main.COMMANDS)
    for command in scripts:
        assert re.search(rf"^  {command} +\w+ ", out, re.M)


def test_unknown_command_is_one_line(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="error: nope is not a command: use one of train, eval"):
        run(monkeypatch, capsys, "nope")


def test_command_receives_only_its_own_arguments(monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, capsys, "runs", f"paths.logs={tmp_path}", "stage=prior")
    assert caught.value.code.startswith(f"error: {tmp_path} has no run of stage=prior")
    assert "`tilewright train stage=dvae`" in caught.value.code


def test_help_of_a_command_names_it_as_it_was_started(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tilewright", "generate", "--help"])
    with pytest.raises(SystemExit):
        main.main()
    out = capsys.readouterr().out
    assert "tilewright generate prompt=" in out
    assert "src/generate.py" not in out


@pytest.mark.parametrize(
    ("started_as", "expected"),
    [
        ("/opt/bin/tilewright", "tilewright eval metric=fid"),
        ("tilewright.exe", "tilewright eval metric=fid"),
        ("src/train.py", "python src/eval.py metric=fid"),
    ],
)
def test_commands_are_named_in_the_form_of_this_program(monkeypatch, started_as, expected):
    monkeypatch.setattr(sys, "argv", [started_as])
    assert program.with_own_invocations("python src/eval.py metric=fid") == expected


def test_commands_are_named_as_installed_where_no_scripts_exist(monkeypatch, tmp_path):
    monkeypatch.setattr(program, "__file__", str(tmp_path / "tilewright" / "program.py"))
    monkeypatch.setattr(sys, "argv", ["notebook.py"])
    assert program.invocation("train") == "tilewright train"


@pytest.mark.slow
def test_processes_are_started_by_the_same_command(home):
    """Lightning starts the second process, which must find the subcommand again."""
    command = [
        sys.executable,
        "-m",
        "tilewright",
        "train",
        "stage=dvae",
        "run_name=first",
        *SMALL[1:],
    ]
    command += [f"paths.data={home.data}", f"paths.logs={home.logs}", "~callbacks.frechet"]
    command += ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=120)
    assert done.returncode == 0, done.stderr
    assert step(home.dvae / "checkpoints" / "last.ckpt") == 6
    (entry,) = environment.load(home.dvae)
    assert entry["command"].startswith("tilewright train stage=dvae run_name=first")
