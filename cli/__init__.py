"""`modelyard`: starts the parts of the service, and shows them at work."""
