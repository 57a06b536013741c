"""Reports about scored models: table.py compares them, page.py writes the files, pictures.py draws boxes."""
