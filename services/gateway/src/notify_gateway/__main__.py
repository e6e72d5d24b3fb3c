"""Run the gateway with `python -m notify_gateway`."""

from notify_gateway.main import main

main()
