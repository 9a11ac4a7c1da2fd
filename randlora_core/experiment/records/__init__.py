"""What runs leave behind: records on disk, predictions, provenance, curves."""
