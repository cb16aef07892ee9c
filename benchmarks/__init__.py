"""What backs the figures of the README."""
