"""fastenh demo: a page in the browser that compares a recording before and after."""

from __future__ import annotations

import click

from fastenh.cli.errors import one_line
from fastenh.cli.interrupts import stoppable
from fastenh.demo.enhancement import Limits
from fastenh.demo.server import serving


@click.command("demo")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 admits other machines."
)
@click.option("--port", default=7860, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@click.option(
    "--max-megabytes", default=100.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Largest upload."
)
@click.option(
    "--max-minutes", default=10.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Longest recording."
)
@click.option(
    "--model", "models", multiple=True, metavar="FILE", help="Offer this checkpoint as well; may be repeated."
)
def command(host: str, port: int, max_megabytes: float, max_minutes: float, models: tuple[str, ...]) -> None:
    """Serve a page that enhances a recording and lets you compare the sound before and after.

    Only this machine can open it unless --host says otherwise, and it fetches nothing from elsewhere. Ctrl-C ends it.
    """
    limits = Limits(max_megabytes, max_minutes)
    with one_line(), stoppable() as stop, serving(host, port, limits, models) as address:
        click.echo(f"the demo is at {address} (Ctrl-C ends it)", err=True)
        while not stop.wait(0.5):
            pass
