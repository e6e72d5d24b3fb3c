"""`python -m notify_client.outbox run` is the same as `notify outbox run`."""

from notify_client.cli.commands.outbox import app

if __name__ == "__main__":
    app(prog_name="python -m notify_client.outbox")
