"""`python -m notify_webhook_sender`."""

from notify_webhook_sender.main import main

main()
