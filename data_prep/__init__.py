"""The command data_prep: raw files and labels to a store with proven splits."""
