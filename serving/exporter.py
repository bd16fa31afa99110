"""The command `bespoke metrics`: the counts of this node on a port of their own, for Prometheus.

`/metrics` of the service needs a key, and behind a proxy that spreads requests over nodes every scrape would reach another
one. This command reads the folder that the replicas of its node count into, beside them, and needs neither.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from prometheus_client import start_http_server

from embeddings.errors import Unavailable
from serving import metrics

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def group() -> None:
    """One command, called by its name all the same."""


@app.command("metrics")
def serve_metrics(
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 9464,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    folder: Annotated[
        Path | None, typer.Option(envvar=metrics.FOLDER, help="Folder that the replicas count into.")
    ] = None,
    site: Annotated[str | None, typer.Option(help="Name of the site, as a label.")] = None,
) -> None:
    """Show the metrics of this node's replicas on a port of their own, until Ctrl-C."""
    if folder is None:
        raise Unavailable(f"no folder of metrics; name it with --folder, or in {metrics.FOLDER}", field="folder")
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[metrics.FOLDER] = str(folder)
    try:
        server, thread = start_http_server(port, addr=host, registry=metrics.collected(site))
    except OSError as error:
        raise Unavailable(f"cannot listen on {host}:{port}: {error.strerror}", field="port") from None
    try:
        thread.join()
    except KeyboardInterrupt:
        server.shutdown()
