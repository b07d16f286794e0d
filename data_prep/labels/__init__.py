"""Labels: from a CSV file or folders to one checked row for each image."""
