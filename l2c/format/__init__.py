"""What every byte of a file means."""
