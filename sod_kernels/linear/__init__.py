"""From hidden states and output heads to divergences, without ever holding the logits of a batch."""
