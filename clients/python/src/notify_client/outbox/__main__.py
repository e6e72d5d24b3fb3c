"""`python -m notify_client.outbox run` is the same as `notify outbox run`."""

import sys

from notify_client.cli.main import main

if __name__ == "__main__":
    main(["outbox", *sys.argv[1:]])
