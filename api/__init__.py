"""The web side: HTTP in, HTTP out."""
