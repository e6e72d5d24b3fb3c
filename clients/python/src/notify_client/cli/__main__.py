"""Run the command as `python -m notify_client.cli`."""

from notify_client.cli.main import main

main()
