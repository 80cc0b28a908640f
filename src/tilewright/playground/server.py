"""How the page is served: to this machine unless told, and with nothing from the internet."""

import logging
import os
import socket
from typing import Any

import gradio as gr

from tilewright.errors import UserError
from tilewright.playground.page import STYLE, THEME


def serve(page: gr.Blocks, host: str, port: int) -> None:
    """Serves the page until it is interrupted.

    Raises:
        UserError: the port is taken, or the host is none of this machine's.
    """
    start(page, server_name=host, server_port=_port(host, port))
    print(f"The page is at {page.local_url} until Ctrl-C ends it", flush=True)
    page.block_thread()


def start(page: gr.Blocks, **where: Any) -> None:
    """Starts to serve it in the background, without what Gradio adds for the public."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of each time that it asks
    # Gradio asks the page whether it is up; a proxy would look for it on its own machine.
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1,localhost"]))
    page.launch(
        theme=THEME,
        css=STYLE,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        show_error=True,
        ssr_mode=False,
        run_history=False,  # it would keep pictures in the browser's storage
        enable_monitoring=False,
        footer_links=[],
        **where,
    )


def _port(host: str, port: int) -> int:
    """The port, or a free one for 0."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return probe.getsockname()[1]
    except OSError as error:
        raise UserError(
            f"the page cannot be served at host={host} port={port} ({error.strerror}): port=0 "
            "takes a free port, and host=127.0.0.1 is this machine"
        ) from error
