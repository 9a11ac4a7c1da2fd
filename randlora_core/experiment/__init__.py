"""What every experiment shares: configuration, training, measuring, records, sweeps and tables."""
