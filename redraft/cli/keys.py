"""`redraft keys`: what replay and its peers prove themselves with on tcp."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Keys that replay and its peers prove themselves with.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Keys that replay and its peers prove themselves with."""


@app.command()
def new(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="To be made; it must not be there yet.")],
) -> None:
    """Make the CURVE keys of a replay service and its peers."""
    from replay import keys

    keys.new(folder)
    typer.echo(
        f"""Keys are in {folder}, which only you can read. Never commit them, nor copy them where others can read them.
  secret  server.key_secret  proves the replay service: only on the machines where replay runs
  secret  client.key_secret  lets a peer in: where replay, the controller, actors and the learner run
  secret  metrics.token      shows the metrics of the service: where it runs, and for Prometheus
  public  server.key         by which peers know the service: beside client.key_secret
  public  client.key         belongs to client.key_secret
  public  allowed/*.key      who is let in: beside server.key_secret; add public keys of others here"""
    )
