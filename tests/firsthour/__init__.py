"""docs/first-hour.md, done as it says."""
