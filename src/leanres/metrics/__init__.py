"""How good a network is: its logits over a split, and what they are worth."""
