"""What protection costs, measured."""
