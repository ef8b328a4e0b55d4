"""Campaigns at sites other than this machine."""
