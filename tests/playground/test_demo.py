"""The command that serves the page, and what it says where it cannot."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import pytest

ROOT = Path(__file__).parents[2]
DEMO = str(ROOT / "src" / "demo.py")


def words(run, tmp_path, *arguments):
    return [f"run={run}", f"paths.logs={tmp_path}", "device=cpu", *arguments]


def fails_in_one_line(*command):
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 1, done
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.slow
def test_the_page_is_for_this_machine_until_it_is_interrupted(run, tmp_path):
    pytest.importorskip("gradio")
    command = [sys.executable, DEMO, *words(run, tmp_path, "port=0")]
    # A proxy that is not there: the page of this machine is reached without.
    elsewhere = {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    environment = {**os.environ, **elsewhere}
    here = tmp_path / "here"
    here.mkdir()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=here, env=environment
    ) as process:
        try:
            line = process.stdout.readline()
            address = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
            assert address, line
            with build_opener(ProxyHandler({})).open(address[0]) as answer:
                assert "Tilewright" in answer.read().decode()
            # 127.0.0.2 is this machine too, and would answer a page that is for everybody.
            with socket.socket() as other, pytest.raises(ConnectionRefusedError):
                other.connect(("127.0.0.2", int(address[1])))
        finally:
            process.send_signal(signal.SIGINT)
        try:
            said, _ = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()  # or the end of the block waits for ever
            raise
        assert process.returncode == 0, said
    assert not list(here.iterdir())


def test_without_gradio(run, tmp_path):
    hidden = f"import runpy, sys; sys.path.insert(0, 'src'); sys.argv[0] = {DEMO!r}; "
    hidden += "sys.modules['gradio'] = None; "
    hidden += f"runpy.run_path({DEMO!r}, run_name='__main__')"
    line = fails_in_one_line("-c", hidden, *words(run, tmp_path))
    assert line.endswith("pip install 'tilewright[demo]'")


def test_without_a_prior(tmp_path):
    pytest.importorskip("gradio")
    line = fails_in_one_line(DEMO, f"paths.logs={tmp_path}")
    assert "python src/train.py stage=prior" in line


def test_best_of_without_a_ranker(run, tmp_path):
    pytest.importorskip("gradio")
    line = fails_in_one_line(DEMO, *words(run, tmp_path, "best_of=64"))
    assert "python src/train.py stage=ranker" in line
    line = fails_in_one_line(DEMO, *words(run, tmp_path, "best_of=64", "ranker=none"))
    assert "ranker=none" in line


@pytest.mark.slow
def test_a_port_that_is_taken(run, tmp_path):
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = fails_in_one_line(DEMO, *words(run, tmp_path, f"port={port}"))
    assert f"port={port}" in line
    assert "port=0" in line
