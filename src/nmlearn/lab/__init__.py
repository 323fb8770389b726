"""What the command line trains, compares and reports with."""
