"""The tasks that run on a site: pure functions on frozen messages, installable on their own."""
