"""One file a subcommand: `run(options)` does the work and returns a report that knows its exit code."""
