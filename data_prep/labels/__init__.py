"""Labels: from a CSV file or folder names to one checked row per image."""
