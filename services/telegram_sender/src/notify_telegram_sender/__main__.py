"""`python -m notify_telegram_sender`."""

from notify_telegram_sender.main import main

main()
