"""What every transformation promises, whatever it computes."""
