"""Many runs as one question: grids of runs, tables with tests of significance, and the paper's experiments."""
