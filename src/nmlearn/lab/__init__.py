"""Training, comparison and reports for the command line."""
