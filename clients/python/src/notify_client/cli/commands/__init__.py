"""The commands. Each module adds its own to the application, or is a group of subcommands."""
