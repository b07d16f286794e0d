"""python -m medcls.compare."""
