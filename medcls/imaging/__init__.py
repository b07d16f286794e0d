"""Raw files to arrays in known units. No torch here: decoding workers import only this folder."""
