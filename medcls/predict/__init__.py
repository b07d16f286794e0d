"""python -m medcls.predict."""
