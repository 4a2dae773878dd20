"""How the tables came to be what they are: one readable file per change."""
