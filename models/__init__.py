"""Trained weights that come with APQ, a card beside each."""
