"""Starts the page and keeps it running."""

from __future__ import annotations

import signal
import socket
import threading
from contextlib import suppress
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from vision_sae_client.web import style
from vision_sae_client.web.page import build_page
from vision_sae_client.web.privacy import ContentSecurity

MAX_UPLOAD_BYTES = 16 * 2**20
"""The largest picture that the page accepts; the server may have another limit."""


def launch(
    address: str,
    *,
    examples_dir: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    token: str | None = None,
    prevent_thread_lock: bool = False,
) -> str:
    """Serve the page for the server at ``address``; returns the page's URL.

    Port 0 means a free port. With ``prevent_thread_lock`` the page runs in a thread until the
    process ends or ``gradio.close_all()``; otherwise the URL is printed and the call returns when
    it is interrupted or terminated.
    """
    page = build_page(address, examples_dir, token=token)
    page.launch(
        server_name=host,
        server_port=port or _free_port(host),
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        inbrowser=False,
        footer_links=[],
        max_file_size=MAX_UPLOAD_BYTES,
        theme=style.theme(),
        css=style.CSS,
        app_kwargs={"middleware": [Middleware(ContentSecurity)]},
    )
    if not prevent_thread_lock:
        print(f"The page is at {page.local_url} (Ctrl-C ends it).", flush=True)
        _wait()
        gr.close_all(verbose=False)
    return str(page.local_url)


def _wait() -> None:
    """Wait until the process is interrupted or terminated."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        threading.Event().wait()


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as listener:
        return int(listener.getsockname()[1])
