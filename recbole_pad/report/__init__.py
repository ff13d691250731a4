"""One self-contained HTML page about runs: results, curves, groups, spaces, items, settings."""
