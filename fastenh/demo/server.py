"""The server of the demo: this machine's alone unless asked otherwise, and the page fetches nothing from elsewhere."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastenh.demo.enhancement import Limits
from fastenh.enhance.enhancer import Enhancer
from fastenh.errors import ProcessingError

_HERE = Path(__file__).parent
SAMPLES = _HERE / "samples"  # copies of samples/, so that an installed package has them, too
_POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'"
_SWITCHES = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_SHARE": "False"}


class DemoError(ProcessingError):
    """The demo cannot be shown here."""


class _Policy:
    """Tells the browser, with every answer, to fetch nothing from elsewhere."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY)]
            await send(message)

        await self._app(scope, receive, with_policy)


@contextmanager
def serving(host: str, port: int, limits: Limits, models: Sequence[str] = ()) -> Iterator[str]:
    """Serve the page while the context lasts, and yield its address. Uploads and results are removed at the end.

    ``models``: checkpoint files that are offered before the shipped models. Raises ``DemoError`` where an extra is
    missing or the address is taken, and ``CheckpointError`` for a file that is no checkpoint.
    """
    for model in models:
        Enhancer.from_pretrained(model, "cpu")  # said before anybody listens
    for package in ("gradio", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise DemoError(f"the demo needs {package}: pip install 'fastenh[demo]'")
    with tempfile.TemporaryDirectory(prefix="fastenh-demo-") as folder:
        uploads, results = (Path(folder).resolve() / name for name in ("uploads", "results"))
        results.mkdir()
        os.environ.update(_SWITCHES, GRADIO_TEMP_DIR=str(uploads))  # gradio reads them when it is imported
        import gradio as gr
        from starlette.middleware import Middleware

        from fastenh.demo.page import build

        page = build(results, SAMPLES, limits, models)
        try:
            _, address, _ = page.queue(api_open=False).launch(
                server_name=host,
                server_port=port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                footer_links=[],
                run_history=False,
                max_file_size=round(limits.megabytes * 2**20),
                allowed_paths=[str(results), str(SAMPLES)],
                app_kwargs={"middleware": [Middleware(_Policy)]},
                theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
                css_paths=_HERE / "page.css",
                head=f"<script>{(_HERE / 'player.js').read_text(encoding='utf-8')}</script>",
            )
        except OSError as error:
            raise DemoError(f"{host}:{port} cannot be used; --port takes another ({error})") from error
        try:
            yield address
        finally:
            page.close(verbose=False)
