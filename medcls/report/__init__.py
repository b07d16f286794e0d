"""Pages, figures and documents of results; they only show numbers, and compute none beyond their page."""
