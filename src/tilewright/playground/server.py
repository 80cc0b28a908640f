"""Serves the playground page on this machine, without external requests."""

import logging
import os
import socket
from typing import Any

import gradio as gr

from tilewright.errors import UserError
from tilewright.playground.page import STYLE, THEME


def serve(page: gr.Blocks, host: str, port: int) -> None:
    """Serves the page until Ctrl-C.

    Args:
        port: 0 takes a free port.

    Raises:
        UserError: the port is in use, or the host is not an address of this machine.
    """
    launch(page, server_name=host, server_port=_resolve_port(host, port))
    print(f"The playground is at {page.local_url} (Ctrl-C stops it)", flush=True)
    page.block_thread()


def launch(page: gr.Blocks, **settings: Any) -> None:
    """Starts a server in the background, without Gradio's sharing, monitoring and footer.

    Args:
        settings: further arguments of `gradio.Blocks.launch`.
    """
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio's start-up requests
    # Gradio polls the page at start-up. A proxy would not reach this machine's localhost.
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
        run_history=False,  # it would keep images in the browser's storage
        enable_monitoring=False,
        footer_links=[],
        **settings,
    )


def _resolve_port(host: str, port: int) -> int:
    """Returns the port, or a free one for 0.

    Raises:
        UserError: the address cannot be bound.
    """
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return probe.getsockname()[1]
    except OSError as error:
        raise UserError(
            f"cannot serve the page at host={host} port={port} ({error.strerror}): set port=0 for "
            "a free port and host=127.0.0.1 for this machine"
        ) from error
