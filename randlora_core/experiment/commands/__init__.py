"""The command lines: train, compare, tune and evaluate, for any experiment."""
