"""`python -m notify_email_sender`."""

from notify_email_sender.main import main

main()
