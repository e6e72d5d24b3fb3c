"""`python -m notify_status_writer`."""

from notify_status_writer.main import main

main()
