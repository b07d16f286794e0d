"""The stage that turns raw files and labels into a store with proven splits."""
