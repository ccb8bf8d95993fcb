"""Reports: HTML pages, plots, galleries."""
