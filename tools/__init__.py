"""What this repository's own commands run; nothing of it is installed."""
