"""fastenh demo: a page in the browser to hear and see what enhancing does."""

from __future__ import annotations

import click

from fastenh.cli.errors import one_line
from fastenh.cli.interrupts import stoppable
from fastenh.demo.enhancement import Limits
from fastenh.demo.server import serving


@click.command("demo")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0 opens it to all.")
@click.option("--port", default=7860, show_default=True, type=click.IntRange(1, 65535))
@click.option("--max-megabytes", default=100.0, show_default=True, type=click.FloatRange(0, min_open=True))
@click.option("--max-minutes", default=10.0, show_default=True, type=click.FloatRange(0, min_open=True))
@click.option("--model", "models", multiple=True, metavar="FILE", help="Offer this checkpoint, too; may be repeated.")
def command(host: str, port: int, max_megabytes: float, max_minutes: float, models: tuple[str, ...]) -> None:
    """Show a page in the browser that enhances a recording, and lets one hear and see it before and after.

    It is served to this machine alone unless --host says otherwise, and fetches nothing from elsewhere. Ctrl-C ends it.
    """
    limits = Limits(max_megabytes, max_minutes)
    with one_line(), stoppable() as stop, serving(host, port, limits, models) as address:
        click.echo(f"the demo is at {address} (Ctrl-C ends it)", err=True)
        while not stop.wait(0.5):
            pass
