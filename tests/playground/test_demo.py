"""The demo command: serving the page, and its errors."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from helpers import untrained
from tilewright import runs
from tilewright.cli import app
from tilewright.cli.demo import load, set_ranker_run_if_available

ROOT = Path(__file__).parents[2]
DEMO = str(ROOT / "src" / "demo.py")
TIMEOUT = 120  # seconds


def overrides(run, logs, *more):
    return [f"run={run}", f"paths.logs={logs}", "device=cpu", *more]


def heed_interrupts():
    """Undoes the shell's choice for background jobs, whose children ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def error_line(*arguments):
    """Runs Python, which must fail with one line on stderr, and returns that line."""
    result = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=TIMEOUT
    )
    assert result.returncode == 1, result
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.slow
def test_the_page_is_served_to_this_machine_until_it_is_interrupted(run, tmp_path):
    pytest.importorskip("gradio")
    command = [sys.executable, DEMO, *overrides(run, tmp_path, "port=0")]
    # An unreachable proxy: the page must be served without it.
    proxy = {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    folder = tmp_path / "working_directory"
    folder.mkdir()
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, **proxy},
        preexec_fn=heed_interrupts,
    ) as process:
        # Ends a process that hangs; reading its output would otherwise block forever.
        watchdog = threading.Timer(TIMEOUT, process.kill)
        watchdog.start()
        try:
            lines = []  # the first is that there is no ranker
            while not lines or (lines[-1] and "http" not in lines[-1]):
                lines.append(process.stdout.readline())
            address = re.search(r"http://127\.0\.0\.1:(\d+)/", lines[-1])
            assert address, lines
            with build_opener(ProxyHandler({})).open(address[0], timeout=TIMEOUT) as response:
                assert "Tilewright" in response.read().decode()
            # 127.0.0.2 is this machine too. A page served to everybody would answer there.
            with socket.socket() as other, pytest.raises(ConnectionRefusedError):
                other.connect(("127.0.0.2", int(address[1])))
        finally:
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate()
            watchdog.cancel()
        assert process.returncode == 0, output
    assert not list(folder.iterdir())


def test_a_missing_gradio_is_an_error(run, tmp_path):
    program = f"import runpy, sys; sys.path.insert(0, 'src'); sys.argv[0] = {DEMO!r}; "
    program += "sys.modules['gradio'] = None; "
    program += f"runpy.run_path({DEMO!r}, run_name='__main__')"
    line = error_line("-c", program, *overrides(run, tmp_path))
    assert line.endswith("pip install 'tilewright[demo]'")


def test_saved_settings_have_the_updates_of_the_weights(run):
    with initialize_config_dir(str(app.CONF), version_base="1.3"):
        playground = load(compose("demo", ["device=cpu"]), run, has_ranker=False)
    assert (playground.run_name, playground.steps) == ("tiny", 7)


def test_a_missing_prior_is_an_error(tmp_path):
    pytest.importorskip("gradio")
    line = error_line(DEMO, f"paths.logs={tmp_path}")
    assert "python src/train.py stage=prior" in line


def test_best_of_without_a_ranker_is_an_error(run, tmp_path):
    pytest.importorskip("gradio")
    line = error_line(DEMO, *overrides(run, tmp_path, "best_of=64"))
    assert "python src/train.py stage=ranker" in line
    line = error_line(DEMO, *overrides(run, tmp_path, "best_of=64", "ranker=none"))
    assert "ranker=none" in line


@pytest.mark.slow
def test_a_port_in_use_is_an_error(run, tmp_path):
    pytest.importorskip("gradio")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        line = error_line(DEMO, *overrides(run, tmp_path, f"port={port}"))
    assert f"port={port}" in line
    assert "port=0" in line


def test_a_ranker_of_another_image_size_is_left_out(tmp_path, caplog):
    caplog.set_level("INFO")
    logs = untrained.all_stages(tmp_path)
    prior, ranker = logs / "prior" / "untrained", logs / "ranker" / "untrained"
    larger = Path(shutil.copytree(ranker, ranker.with_name("larger")))
    saved = OmegaConf.load(larger / runs.CONFIG)
    saved.model.network.image_size *= 2
    OmegaConf.save(saved, larger / runs.CONFIG)
    (larger / "checkpoints" / "best.ckpt").touch()  # the newest

    def config():
        settings = {"_target_": "ContrastiveRanker", "run": None}
        return OmegaConf.create({"paths": {"logs": logs}, "best_of": None, "ranker": settings})

    demo = config()
    assert set_ranker_run_if_available(demo, prior)
    assert demo.ranker.run == str(ranker.resolve())
    shutil.rmtree(ranker)
    assert not set_ranker_run_if_available(config(), prior)
    assert "The page has no ranker: " in caplog.text
    assert "larger was trained on data.image_size=32" in caplog.text
