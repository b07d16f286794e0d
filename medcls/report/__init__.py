"""Pages, figures and documents; they compute nothing that is not on the page."""
