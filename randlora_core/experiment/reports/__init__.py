"""What is read from records: statistics, tables, figures and notes."""
