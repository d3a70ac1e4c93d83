"""The pages of the documentation, and the scripts that make their figures and tables."""
