"""python -m medcls.train."""
