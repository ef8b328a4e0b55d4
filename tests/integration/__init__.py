"""Whole campaigns in processes of their own."""
