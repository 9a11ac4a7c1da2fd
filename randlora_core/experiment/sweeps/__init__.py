"""Many runs: comparison files, learning-rate grids, child processes, progress and estimates."""
