"""The command line: one thin subcommand per job, pretty errors; the only room that prints."""
