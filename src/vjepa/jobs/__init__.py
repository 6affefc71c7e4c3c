"""The jobs: each has a root config, a `run`, and is the only place where rooms are put together."""
