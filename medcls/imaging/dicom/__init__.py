"""DICOM files to arrays in physical units, by the standard."""
